"""The stages of an optimisation: each takes a document and gives a changed copy of it.

A stage keeps its state in the job's folder and goes on from there; called again when it is done, it reads its
result back.
"""

from __future__ import annotations

from dataclasses import replace

from cnpass.compensation.overhead import overhead, weight_keys
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.optimization.job import Epochs, Job
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.placement.search import Choice, Space, search
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


def place(job: Job, document: Document, epochs: Epochs) -> Choice | None:
    """Search for the node and the width of one compensation; None where none fits the overhead allowed."""
    sites, _ = find_sites(document, plan(document))
    if not sites:
        return None

    def score(choice: Choice) -> float | None:
        compensated = insert(job, document, choice)
        cost = overhead(compensated)
        if max(cost.params, cost.macs or 0.0) > job.recipe.max_overhead:
            return None
        return _train_compensation(job, compensated, _options(job, epochs.trial, "search"))[1].score

    found = search(
        Space(tuple(sites)),
        score,
        trials=job.recipe.trials,
        seed=job.recipe.seed,
        storage=job.folder / "study.db",
        progress=job.progress,
    )
    return found[0] if found else None


def insert(job: Job, document: Document, choice: Choice) -> Document:
    """Insert a compensation that changes no output yet."""
    compensated = document.copy()
    seed = seed_of(job.recipe.seed, "compensation", choice.node) % 2**31
    InsertCompensation(node=choice.node, kind=choice.kind, ratio=choice.ratio, seed=seed)(compensated)
    return compensated


def compensate(job: Job, document: Document, choice: Choice, epochs: Epochs) -> tuple[Document, TrainResult]:
    """Train a compensation with the analog weights frozen."""
    compensated = insert(job, document, choice)
    options = _options(job, epochs.compensation, "compensation")
    return _train_compensation(job, compensated, options, name="compensation")


def _options(job: Job, epochs: int, name: str) -> TrainOptions:
    """Only digital weights change: full variation from the start, and nothing for the penalty to act on."""
    seed = seed_of(job.recipe.seed, name)
    return replace(job.options(epochs), levels=(1.0,), beta=0.0, checks=4, seed=seed)


def _train_compensation(
    job: Job, document: Document, options: TrainOptions, name: str | None = None
) -> tuple[Document, TrainResult]:
    """Train the compensation of a document in place; without a name nothing is kept or shown."""
    result = train(
        job.forward(document),
        job.problem,
        options,
        trained=weight_keys(document),
        path=job.folder / f"{name}.pt" if name else None,
        progress=job.progress if name else None,
        title=f"training the {name}",
    )
    write_back(document, result.weights)
    return document, result
