"""The stages of an optimisation: each takes a document and gives a changed copy of it.

A stage keeps its state in the job's folder and goes on from there; called again when it is done, it reads its
result back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cnpass.compensation.overhead import weight_keys
from cnpass.document import Document
from cnpass.optimization.job import Epochs, Job
from cnpass.placement.candidates import find_candidates
from cnpass.placement.search import search
from cnpass.placement.sharing import Supernet, train_shared
from cnpass.placement.space import KINDS, RATIOS, Placement
from cnpass.training.retrain import TrainOptions, TrainResult, train
from cnpass.training.schedule import seed_of
from cnpass.training.writeback import write_back


def retrain(job: Job, epochs: Epochs) -> tuple[Document, TrainResult]:
    """Train all weights of the source under injected variation with the Lipschitz penalty."""
    forward = job.forward(job.source)
    result = train(
        forward,
        job.problem,
        job.options(epochs.retrain),
        path=job.folder / "retrain.pt",
        progress=job.progress,
        title="retraining",
    )
    document = job.source.copy()
    write_back(document, result.weights)
    return document, result


@dataclass(frozen=True)
class Placed:
    """What the search for a place came to.

    Attributes:
        document: The document with the compensation that was found and its share of the shared weights.
        placement: What that is; empty if there is none.
        notes: What there is to say about it.
    """

    document: Document
    placement: Placement
    notes: tuple[str, ...]


def place(job: Job, document: Document, epochs: Epochs) -> Placed:
    """Search for kind and width of compensation at every node at once, with weights that all trials share.

    What is found may still be no better than nothing: it is trained alone before the ladder judges it.
    """
    candidates = find_candidates(document, job.forward(document), job.search_validator)
    notes = (candidates.note,) if candidates.note else ()
    if not candidates.nodes:
        return Placed(document, (), (*notes, "no node can be compensated"))
    supernet = Supernet(document, candidates.nodes, KINDS, RATIOS, seed=job.recipe.seed)
    space = supernet.space(job.recipe.max_overhead)
    if not space.cheapest():
        return Placed(document, (), (*notes, "no compensation fits the overhead allowed"))
    forward = job.forward(supernet.document)
    trained = train_shared(
        supernet,
        space,
        forward,
        job.problem,
        _options(job, epochs.shared, "search"),
        path=job.folder / "shared.pt",
        progress=job.progress,
    )
    weights = forward.module.weights
    found = search(
        space,
        lambda placement: job.search_validator.score(forward, supernet.stand_ins(weights, placement)),
        trials=epochs.trials,
        seed=job.recipe.seed,
        storage=job.folder / "study.db",
        progress=job.progress,
    )
    notes = (*notes, *trained.notes)
    return Placed(supernet.extract(weights, found.compensated), found.compensated, notes)


def compensate(job: Job, document: Document, epochs: Epochs) -> tuple[Document, TrainResult]:
    """Train the compensation of a document on, with the analog weights frozen."""
    compensated = document.copy()
    result = train(
        job.forward(compensated),
        job.problem,
        _options(job, epochs.compensation, "compensation"),
        trained=weight_keys(compensated),
        path=job.folder / "compensation.pt",
        progress=job.progress,
        title="training the compensation",
    )
    write_back(compensated, result.weights)
    return compensated, result


def _options(job: Job, epochs: int, name: str) -> TrainOptions:
    """Only digital weights change: full variation from the start, and nothing for the penalty to act on."""
    seed = seed_of(job.recipe.seed, name)
    return replace(job.options(epochs), levels=(1.0,), beta=0.0, checks=4, seed=seed)
