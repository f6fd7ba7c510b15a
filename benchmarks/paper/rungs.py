"""The rungs of the ladder: each makes a model, or, chip after chip, a correction of that chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cnpass
from cnpass import data as datasets
from cnpass.compensation import inputs
from cnpass.compensation.closed_form import fit
from cnpass.compensation.kinds import Kind
from cnpass.compensation.overhead import left
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.optimization.effort import Effort
from cnpass.optimization.replication import replicate, without_copies
from cnpass.optimization.setting import unmapped
from cnpass.passes.centre_inputs import centre
from cnpass.passes.pipeline import Pipeline
from cnpass.placement.sharing import insert_all, widest
from cnpass.placement.space import Placement
from cnpass.progress import Progress
from cnpass.recipe import TrainRecipe
from cnpass.records import CalibrateRecord, OptimizeRecord, TrainedRecord
from cnpass.runtime.devices import make_device

SIGMA = 0.5
BETA = 1e-3
MAX_OVERHEAD = 0.05
OUR_KINDS: tuple[Kind, ...] = ("gain", "residual", "probe", "bypass")
UNLIMITED = 1e9
"""Overhead for rungs that show what could be had, at whatever cost."""
COST = 2
"""Epochs of a brief optimisation over those of training the plain network, at most."""
TILE = 256
"""Rows and columns of the tiles whose spare rows take copies."""
TEST_SEED = 0
"""Seed of the chips of all figures."""


@dataclass(frozen=True)
class Bench:
    """One row with one training seed.

    Attributes:
        plain: The network as it was trained.
        data: The data.
        preprocess: How the data become the network's input.
        seed: Seed of training and search.
        epochs: Epochs of each training that shows one part of the method by itself.
        rate: Peak learning rate of every training of analog weights.
        told: Whether the main job is told that length, too, and has none of its own.
        folder: Where models and run folders go; what lies there is not made again.
        training: Epochs and seconds that training the plain network took; None for seconds that nobody knows.
        device: Where training runs: cpu or cuda.
        progress: Told what happens.
        train: Trains the plain network for a number of epochs, and writes it to a file.
    """

    plain: Path
    data: Path
    preprocess: dict[str, Any]
    seed: int
    epochs: int
    rate: float
    told: bool
    folder: Path
    training: tuple[int, float | None]
    device: str
    progress: Progress
    train: Callable[[int, Path], None]

    def model(self, rung: str) -> Path:
        """Return the file of a rung's model."""
        return self.plain if rung == "plain" else self.folder / f"{rung}.onnx"

    def single(self, rung: str) -> Document:
        """Return a rung's model in standard operators, its weights without copies."""
        return without_copies(unmapped(Document.load(self.model(rung))))

    def options(self, rung: str) -> dict[str, Any]:
        """Return what every verb that trains is told."""
        return {
            **self.preprocess,
            "data": self.data,
            "sigma": SIGMA,
            "seed": self.seed,
            "output": self.model(rung),
            "force": True,
            "run": self.folder / f"{rung}.run",
            "train_on": self.device,
            "progress": self.progress,
        }


Make = Callable[[Bench, str], int]
"""Writes the model of a rung, and returns the epochs trained for it."""


def _nothing(_: Bench, __: str) -> int:
    return 0


def _mean_gain(bench: Bench, rung: str) -> int:
    document = Document.load(bench.plain)
    Pipeline.parse(f"fold-batch-norm,correct-mean-gain{{sigma={SIGMA}}}").run(document)
    document.save(bench.model(rung), force=True)
    return 0


def _closed_form(limit: float) -> Make:
    """Linear compensation at every node, as wide as a limit allows."""

    def make(bench: Bench, rung: str) -> int:
        document = Document.load(bench.plain)
        recipe = TrainRecipe.build(None, {**bench.preprocess, "data": str(bench.data)})
        train = datasets.prepare(document.proto, document.path, recipe).train
        placement = _widest(bench, document, "linear", limit)
        device = make_device("lognormal", sigma=SIGMA)
        fitted = fit(document, placement, train, device, seed=bench.seed, progress=bench.progress)
        fitted.document.save(bench.model(rung), force=True)
        return 0

    return make


def _probes(bench: Bench, rung: str) -> int:
    document = Document.load(bench.plain)
    Pipeline.parse("fold-batch-norm").run(document)
    probed, _ = insert_all(document, _widest(bench, document, "probe"), seed=bench.seed)
    probed.save(bench.model(rung), force=True)
    return 0


def _centring(bench: Bench, rung: str) -> int:
    _centred(bench).save(bench.model(rung), force=True)
    return 0


def _bypass(bench: Bench, rung: str) -> int:
    """On centred inputs, as it is in the main job."""
    document = _centred(bench)
    device = make_device("lognormal", sigma=SIGMA)
    known = inputs.look(document, device, _samples(bench, document), seed=bench.seed)
    limit = left(document, MAX_OVERHEAD)
    bypassed, _ = insert_all(
        document, _widest(bench, document, "bypass", limit), seed=bench.seed, known=known
    )
    bypassed.save(bench.model(rung), force=True)
    return 0


def _centred(bench: Bench) -> Document:
    document = Document.load(bench.plain)
    Pipeline.parse("fold-batch-norm").run(document)
    centre(document, _samples(bench, document))
    Pipeline.parse(f"correct-mean-gain{{sigma={SIGMA}}}").run(document)
    return document


def _samples(bench: Bench, document: Document) -> dict[str, Any]:
    recipe = TrainRecipe.build(None, {**bench.preprocess, "data": str(bench.data)})
    train = datasets.prepare(document.proto, document.path, recipe).train
    return dict(train.take(slice(inputs.SAMPLES)).inputs)


def _widest(bench: Bench, document: Document, kind: Kind, limit: float = MAX_OVERHEAD) -> Placement:
    """Compensation of one kind at as many nodes, and as wide, as the limit allows."""
    nodes = list(find_sites(document, plan(document))[0])
    return widest(document, nodes, kind, limit=limit, seed=bench.seed)


def _retrained(start: str = "plain", **options: Any) -> Make:
    def make(bench: Bench, rung: str) -> int:
        given = {"epochs": bench.epochs, "rate": bench.rate, **bench.options(rung), **options}
        return _epochs(cnpass.retrain(bench.model(start), **given))

    return make


def _longer(bench: Bench, rung: str) -> int:
    """Plain training that has the epochs of the main job, too, so that no rung is bought by a weak start."""
    record = bench.model("best").with_suffix(".json").read_text()
    epochs = _epochs(OptimizeRecord.model_validate_json(record))
    bench.train(bench.training[0] + epochs, bench.model(rung))
    return epochs


def _copies(bench: Bench, rung: str) -> int:
    """Training on from the main job's result, twice as long as the trainings of single parts."""
    on = _retrained("best", replicate=True, ramp=(1.0,), epochs=2 * bench.epochs)
    return on(bench, rung)


def _compensated(start: str, *kinds: str) -> Make:
    """The search and what it trains, for as many epochs together as every other single part."""

    def make(bench: Bench, rung: str) -> int:
        epochs = _longest(bench.epochs, _searching)
        given = {"epochs": epochs, "kinds": kinds, "max_overhead": MAX_OVERHEAD}
        return _epochs(cnpass.search(bench.model(start), **bench.options(rung), **given))

    return make


def _best(bench: Bench, rung: str) -> int:
    """The main job."""
    return _optimized(bench, rung, {"epochs": bench.epochs} if bench.told else {})


def _brief(bench: Bench, rung: str) -> int:
    """The main job with as many epochs in each of its trainings as `COST` allows."""
    return _optimized(bench, rung, {"epochs": _longest(COST * bench.training[0], _everything)})


def _longest(allowed: int, total: Callable[[Effort], int]) -> int:
    """The largest number of epochs to tell a verb so that its trainings together take those allowed."""
    epochs = 1
    while total(Effort.told(epochs + 1, trials=0)) <= allowed:
        epochs += 1
    return epochs


def _searching(effort: Effort) -> int:
    """Epochs of all trainings of a search."""
    return effort.shared + effort.compensation


def _everything(effort: Effort) -> int:
    """Epochs of all trainings of the main job, which trains all weights without the penalty and with it."""
    return 2 * effort.retrain + _searching(effort) + effort.together


def _optimized(bench: Bench, rung: str, lengths: dict[str, Any]) -> int:
    """Of test chips it takes two, for the job needs figures, and no choice depends on them."""
    given = {**bench.options(rung), **lengths, "rate": bench.rate}
    return _epochs(cnpass.optimize(bench.plain, **given, max_overhead=MAX_OVERHEAD, chips=2))


def _epochs(record: TrainedRecord) -> int:
    return record.epochs or 0


@dataclass(frozen=True)
class Rung:
    """One chip-agnostic rung.

    Attributes:
        title: What it is called in the table.
        make: Makes its model.
        grid: Whether it is measured at every sigma.
        regained: Whether it is measured there with its mean gain corrected for that sigma, too.
    """

    title: str
    make: Make
    grid: bool = False
    regained: bool = False


RUNGS = {
    "plain": Rung("no correction", _nothing, grid=True),
    "mean-gain": Rung("mean-gain correction", _mean_gain),
    "penalty": Rung("Lipschitz penalty", _retrained(injection=False, beta=BETA)),
    "injection": Rung("noise injection", _retrained()),
    "distillation": Rung("noise injection and distillation", _retrained(distillation=0.5)),
    "closed-form": Rung("compensation alone, closed form", _closed_form(MAX_OVERHEAD)),
    "closed-form-full": Rung("compensation alone, closed form of full rank", _closed_form(UNLIMITED)),
    "paper-kind": Rung("compensation alone, the paper's kind", _compensated("plain", "paper")),
    "probes": Rung("compensation alone, probes, untrained", _probes),
    "centring": Rung("centred inputs and mean-gain correction, untrained", _centring),
    "bypass": Rung("centred inputs, mean-gain correction and bypasses, untrained", _bypass),
    "our-kinds": Rung("compensation alone, our kinds", _compensated("plain", *OUR_KINDS)),
    "paper": Rung("penalty and the paper's compensation", _compensated("penalty", "paper"), grid=True),
    "best": Rung("everything that helps, trained together", _best, grid=True, regained=True),
    "brief": Rung("the same, within twice the plain network's epochs", _brief),
    "best-copies": Rung("everything that helps, trained on with copies", _copies),
    "longer": Rung("plain, trained for the epochs of everything that helps, too", _longer),
}
"""In the order in which they are made: some start from another's model."""


@dataclass(frozen=True)
class PerChip:
    """One rung that corrects every chip for itself.

    Attributes:
        title: What it is called in the table.
        start: The rung whose model is corrected.
        correction: What ``cnpass calibrate`` fits.
        max_overhead: What it may cost.
        samples: Training images that it is fitted on.
        copies: Whether chips have copies in spare rows.
    """

    title: str
    start: str
    correction: str
    max_overhead: float = MAX_OVERHEAD
    samples: int = 1000
    copies: bool = False

    def corrected(self, bench: Bench, rung: str, chip: int) -> CalibrateRecord:
        """Return the record of one chip, with the correction fitted for it; its figures are on test data."""
        start = bench.single(self.start)
        return cnpass.calibrate(
            replicate(start, TILE, TILE) if self.copies else start,
            bench.data,
            **bench.preprocess,
            sigma=SIGMA,
            chip=chip,
            seed=TEST_SEED,
            correction=self.correction,
            max_overhead=self.max_overhead,
            samples=self.samples,
            output=bench.folder / f"{rung}.chip.onnx",
            force=True,
        )


PER_CHIP = {
    "chip-affine": PerChip("factor and offset per channel, plain network", "plain", "affine"),
    "chip-low-rank": PerChip("low-rank correction, plain network", "plain", "low-rank"),
    "chip-full": PerChip("correction of full rank, plain network", "plain", "low-rank", UNLIMITED, 4000),
    "chip-best-affine": PerChip("factor and offset, on top of everything that helps", "best", "affine"),
    "chip-best": PerChip("low-rank correction, on top of everything that helps", "best", "low-rank"),
    "chip-best-copies-affine": PerChip(
        "factor and offset of chips with copies, on top of what was trained on with them",
        "best-copies",
        "affine",
        copies=True,
    ),
    "chip-best-copies": PerChip(
        "low-rank correction of chips with copies, on top of what was trained on with them",
        "best-copies",
        "low-rank",
        copies=True,
    ),
}
