"""The stages of an optimisation: each takes a document and gives a changed copy of it.

A stage keeps its state in the job's folder and goes on from there; called again when it is done, it reads its
result back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from cnpass.compensation.builder import Known
from cnpass.compensation.closed_form import FIT_CHIPS, FIT_SAMPLES, MAX_FEATURES, fit
from cnpass.compensation.inputs import SAMPLES
from cnpass.compensation.kinds import Kind
from cnpass.compensation.overhead import cost, weight_keys
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.errors import DataError
from cnpass.evaluation.pool import default_workers
from cnpass.mapping import plan
from cnpass.optimization.effort import Effort
from cnpass.optimization.job import Job
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.centre_inputs import centre
from cnpass.passes.correct_mean_gain import CorrectMeanGain
from cnpass.passes.mean_gain import keep_trained
from cnpass.placement.candidates import Candidates, find_candidates
from cnpass.placement.measuring import Measurer, write_job
from cnpass.placement.search import search
from cnpass.placement.sharing import Supernet, insert_all, train_shared, widest
from cnpass.placement.space import RATIOS, Placement, Space
from cnpass.recipe import DEFAULT_KINDS, SearchRecipe
from cnpass.records import Overhead
from cnpass.training.forward import Forward
from cnpass.training.lift import lift
from cnpass.training.retrain import TrainOptions, TrainResult, train
from cnpass.training.schedule import MOST_MACS, seed_of
from cnpass.training.validation import Validator
from cnpass.training.writeback import write_back

_FEWEST_FIT_CHIPS = 32
_MACS_FOR_PROCESSES = 1e11
"""Multiply-accumulates of a search from which on several processes are started: an estimate."""


@dataclass(frozen=True)
class Placed:
    """A document with compensation.

    Attributes:
        document: The document.
        placement: Its compensation; empty if there is none.
        notes: What there is to say about it.
        epochs: Epochs trained to find it.
    """

    document: Document
    placement: Placement
    notes: tuple[str, ...] = ()
    epochs: int = 0


def correct_mean_gain(job: Job, document: Document) -> Document | None:
    """Divide a document's weights by the device model's mean factor; None where there is none but 1."""
    corrected = document.copy()
    try:
        changed = CorrectMeanGain(device=job.device)(corrected)
    except PassPreconditionError:
        return None
    return corrected if changed.modified else None


def centre_inputs(job: Job) -> Document | None:
    """Lead the mean of what enters analog nodes around the crossbars; None where that is not worth it."""
    document = job.source.copy()
    try:
        done, _ = centre(document, job.train.take(slice(SAMPLES)).inputs, for_first_output=True)
    except DataError:
        return None
    if not done or job.left(document) < 0:
        return None
    return correct_mean_gain(job, document) or document


def fit_closed_form(job: Job) -> Placed:
    """Fit linear compensation at every node of the source, as wide as the overhead allows.

    Kinds that a user names leave it out, unless it is among them.
    """
    if "linear" not in job.kinds and set(job.kinds) != set(DEFAULT_KINDS):
        return Placed(job.source, ())
    sites, _ = find_sites(job.source, job.plan, for_first_output=True)
    nodes = [label for label, site in sites.items() if site.inputs + site.outputs <= MAX_FEATURES]
    if not nodes:
        return Placed(job.source, (), ("closed form: no node can be compensated",))
    placement = widest(job.source, nodes, "linear", limit=job.left(job.source), seed=job.recipe.seed)
    if not placement:
        return Placed(job.source, (), ("closed form: no compensation fits the overhead allowed",))
    work = len(placement) * FIT_SAMPLES * max(cost(job.plan.nodes).macs or 1, 1)
    chips = min(FIT_CHIPS, max(_FEWEST_FIT_CHIPS, int(MOST_MACS / work)))
    try:
        fitted = fit(
            job.source,
            placement,
            job.train,
            job.device,
            seed=job.recipe.seed,
            chips=chips,
            progress=job.progress,
        )
    except DataError as error:
        return Placed(job.source, (), (f"closed form: {error}",))
    return Placed(fitted.document, placement)


def insert_untrained(job: Job, kind: Kind, known: Known) -> Placed:
    """Insert compensation of one kind in the base, untrained, as wide as the overhead allows."""
    if kind not in job.kinds:
        return Placed(job.base, ())
    sites, _ = find_sites(job.base, plan(job.base), for_first_output=True)
    nodes, seed = list(sites), job.recipe.seed
    placement = widest(job.base, nodes, kind, limit=job.left(job.base), seed=seed)
    document, _ = insert_all(job.base, placement, seed=seed, known=known)
    return Placed(document, placement)


def retrain(job: Job, epochs: int, beta: float) -> tuple[Document, TrainResult]:
    """Train all weights of the base under injected variation.

    Args:
        job: The job.
        epochs: Epochs to train.
        beta: Weight of the Lipschitz penalty.
    """
    name, title = ("penalty", "retraining with penalty") if beta else ("retrain", "retraining")
    options = replace(job.options(epochs), beta=beta)
    result = train(
        job.forward(job.base),
        job.problem,
        options,
        path=job.folder / f"{name}.pt",
        progress=job.progress,
        title=title,
    )
    return _with_weights(job, job.base, options, result), result


@dataclass(frozen=True)
class TriedOut:
    """What a training for comparison came to.

    Attributes:
        values: The figure of every chip that options are chosen on.
        epochs: Epochs trained.
    """

    values: list[float]
    epochs: int


def try_out(job: Job, epochs: int, beta: float, *, name: str, title: str) -> TriedOut:
    """Train as `retrain` does, for comparison with other options; only the figures are kept.

    Args:
        job: The job.
        epochs: Epochs to train.
        beta: Weight of the Lipschitz penalty.
        name: Name of the checkpoint, which goes when the figures are there.
        title: What this training is called.
    """
    forward = job.forward(job.base)
    path = job.folder / f"{name}.pt"
    result = train(
        forward,
        job.problem,
        replace(job.options(epochs), beta=beta),
        path=path,
        progress=job.progress,
        title=title,
    )
    values = job.tuning_validator.values(forward)
    path.unlink(missing_ok=True)
    return TriedOut(values, result.epochs)


@dataclass(frozen=True)
class Searched:
    """What a search for a placement came to.

    Attributes:
        placed: The best placement that has any compensation, with its share of the shared weights.
        candidates: Nodes that could be compensated, and why the others could not.
        figures: The figures of every placement that was measured, chip by chip, in the order of the trials.
        front: The placements that none beats at the same or a lower overhead, the cheapest first.
        overhead: Tells what a placement costs.
    """

    placed: Placed
    candidates: Candidates
    figures: Mapping[Placement, tuple[float, ...]] = field(default_factory=dict)
    front: tuple[Placement, ...] = ()
    overhead: Callable[[Placement], Overhead] = lambda _: Overhead(params=0.0, macs=0.0)


@dataclass(frozen=True)
class Shared:
    """A trained network that holds every placement.

    Attributes:
        supernet: The network.
        space: The placements within the overhead allowed.
        weights: Its trained weights by key.
        document: It as samples reach it, with these weights.
        rows: Samples per call where that document fixes them.
        training: How its training went.
    """

    supernet: Supernet
    space: Space
    weights: Mapping[str, torch.Tensor]
    document: Document
    rows: int | None
    training: TrainResult


def share(job: Job, document: Document, nodes: Sequence[str], effort: Effort) -> Shared | None:
    """Train weights that all placements share; None if the overhead allowed has room for none.

    Args:
        job: The job.
        document: The document to compensate.
        nodes: Labels of the candidates.
        effort: How long.
    """
    known = job.known(document)
    supernet = Supernet(document, nodes, job.kinds, RATIOS, seed=job.recipe.seed, known=known)
    space = supernet.space(job.left(document))
    if not space.cheapest():
        return None
    network, rows = job.arranged(supernet.document)
    forward = Forward(lift(network).on(job.torch_device), rows)
    trained = train_shared(
        supernet,
        space,
        forward,
        job.problem,
        _options(job, effort.shared, "search"),
        path=job.folder / "shared.pt",
        progress=job.progress,
    )
    weights = forward.module.weights
    network = network.copy()
    write_back(network, {key: weights[key] for key in supernet.keys & weights.keys()})
    return Shared(supernet, space, weights, network, rows, trained)


def place(job: Job, document: Document, effort: Effort) -> Searched:
    """Search for kind and width of compensation at every node at once, with weights that all trials share.

    What is found may still be no better than nothing: it is trained alone before the ladder judges it.
    """
    candidates = find_candidates(document, job.forward(document), job.search_validator, job.idle.cut)
    notes = (candidates.note,) if candidates.note else ()
    if not candidates.nodes:
        return Searched(Placed(document, (), (*notes, "no node can be compensated")), candidates)
    shared = share(job, document, candidates.nodes, effort)
    if shared is None:
        why = "no compensation fits the overhead allowed"
        return Searched(Placed(document, (), (*notes, why)), candidates)
    with measuring(job, shared, effort.trials) as measurer:
        found = search(
            shared.space,
            measurer,
            trials=effort.trials,
            seed=job.recipe.seed,
            sampler=job.recipe.sampler if isinstance(job.recipe, SearchRecipe) else "tpe",
            storage=job.folder / "study.db",
            progress=job.progress,
        )
    extracted = shared.supernet.extract(shared.weights, found.compensated)
    placed = Placed(extracted, found.compensated, (*notes, *shared.training.notes), shared.training.epochs)
    return Searched(placed, candidates, found.figures, found.front, shared.space.overhead)


@contextmanager
def measuring(job: Job, shared: Shared, trials: int) -> Iterator[Measurer]:
    """Give what measures placements on the search's validation samples, in as many processes as pay."""
    folder = job.folder / "placements"
    folder.mkdir(exist_ok=True)
    validator = job.search_validator
    work = write_job(folder, shared.supernet, shared.document, shared.rows, validator)
    with Measurer(work, _workers(job, validator, trials), folder) as measurer:
        yield measurer
    shutil.rmtree(folder)


def _workers(job: Job, validator: Validator, trials: int) -> int:
    """Return how many processes measure placements: as told, or several where there is much to measure."""
    if job.torch_device.type != "cpu":
        return 1
    macs = cost(job.plan.nodes).macs or 1
    work = trials * len(validator.samples) * len(validator.chips) * macs
    return job.recipe.workers or (default_workers() if work >= _MACS_FOR_PROCESSES else 1)


def compensate(job: Job, document: Document, effort: Effort) -> tuple[Document, TrainResult]:
    """Train the compensation of a document on, with the analog weights frozen."""
    compensated = document.copy()
    result = train(
        job.forward(compensated),
        job.problem_after(1),
        _options(job, effort.compensation, "compensation"),
        trained=weight_keys(compensated),
        path=job.folder / "compensation.pt",
        progress=job.progress,
        title="training the compensation",
    )
    write_back(compensated, result.weights)
    return compensated, result


def extend(job: Job, document: Document, placement: Placement) -> Placed:
    """Add gain compensation at every convolution that has none, as wide as the overhead left over allows.

    Frozen analog weights hardly profit from it, so the search has no reason to ask for it; weights that are
    trained together with it do, and it costs next to no multiplications.
    """
    sites, _ = find_sites(document, plan(document), for_first_output=True)
    nodes = [label for label, site in sites.items() if site.is_conv and site.weight.key not in job.idle.cut]
    if not nodes or "gain" not in job.kinds:
        return Placed(document, placement)
    added = widest(document, nodes, "gain", limit=job.left(document), seed=job.recipe.seed)
    extended, _ = insert_all(document, added, seed=job.recipe.seed)
    order = [entry.label for entry in job.plan.analog]
    both = sorted((*placement, *added), key=lambda choice: order.index(choice.node))
    return Placed(extended, tuple(both))


def train_on(
    job: Job, document: Document, epochs: int, *, beta: float, hardened: bool
) -> tuple[Document, TrainResult]:
    """Train all weights on under variation.

    Args:
        job: The job.
        document: The document.
        epochs: Epochs to train.
        beta: Weight of the Lipschitz penalty.
        hardened: Whether they were trained under variation before, so that there is no ramp.
    """
    options = replace(job.options(epochs), beta=beta, seed=seed_of(job.recipe.seed, "together"))
    if hardened:
        options = replace(options, levels=options.levels[-1:])
    result = train(
        job.forward(document),
        job.problem_after(2),
        options,
        path=job.folder / "together.pt",
        progress=job.progress,
        title="training on",
    )
    return _with_weights(job, document, options, result), result


def _with_weights(job: Job, document: Document, options: TrainOptions, result: TrainResult) -> Document:
    """Return a copy of a document with what was trained, which says what mean factor the weights learned."""
    trained = document.copy()
    changed = write_back(trained, result.weights)
    if options.ends_real:
        by_gradient = not options.beta and options.clip_weights is None
        keep_trained(trained, job.device, job.idle.taught(changed, only_by_gradient=by_gradient))
    return trained


def _options(job: Job, epochs: int, name: str) -> TrainOptions:
    """Only digital weights change: the device's own variation throughout, and no penalty or clipping."""
    seed = seed_of(job.recipe.seed, name)
    return TrainOptions(epochs=epochs, draws=job.recipe.draws, levels=(1.0,), checks=4, seed=seed)
