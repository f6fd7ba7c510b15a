"""Closed form: compensation fitted by least squares on simulated chips; no labels, no training, seconds.

Node after node in the order of the file: what chips make of calibration inputs, with all corrections so far,
is compared with what the clean model makes of them. Activations come from ONNX Runtime, so any model will do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.bench import Bench, Place
from cnpass.compensation.builder import Linear
from cnpass.compensation.insertion import Insertion, insert, width_of
from cnpass.compensation.kinds import Kind
from cnpass.compensation.regression import Float64, Moments, calibration, reduced_rank
from cnpass.compensation.site import Site, find_sites
from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.mapping import plan
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.passes.mean_gain import intended
from cnpass.progress import Progress
from cnpass.runtime.devices import DeviceModel
from cnpass.training.schedule import seed_of

FIT_CHIPS_START = 2_000_000
"""Chips from here on serve closed forms; validation, search and final figures use others."""

FIT_CHIPS = 256
FIT_SAMPLES = 16
"""Many chips that see few samples each: a fit on few chips corrects those and no others."""

MAX_FEATURES = 8192
"""Inputs and outputs of a node, together, up to which it can be fitted: its moments then take half a GB."""

_SMALLEST_RIDGE = 1e-9


class Choice(Protocol):
    """One compensation to fit."""

    @property
    def node(self) -> str:
        """Label of the node."""

    @property
    def kind(self) -> Kind:
        """Kind of compensation."""

    @property
    def ratio(self) -> float:
        """Filters of the generator over output channels."""


@dataclass(frozen=True)
class NodeFit:
    """How well one node could be fitted, on the chips and samples of the fit.

    Attributes:
        node: label of the node.
        kind: kind of compensation; None for a normalisation whose statistics were fitted.
        width: filters of its generator; 0 where there is none.
        before: squared error of the node's output over the variance of the clean output.
        after: the same behind the compensation.
    """

    node: str
    kind: Kind | None
    width: int
    before: float
    after: float


@dataclass(frozen=True)
class Fit:
    """A document with fitted compensation.

    Attributes:
        document: the model.
        nodes: how well each node could be fitted, in the order of the file.
    """

    document: Document
    nodes: tuple[NodeFit, ...]


def fit(
    document: Document,
    choices: Sequence[Choice],
    split: Split,
    device: DeviceModel,
    *,
    seed: int = 0,
    chips: int | range = FIT_CHIPS,
    samples: int = FIT_SAMPLES,
    ridge: float = 1e-3,
    target: Document | None = None,
    behind: bool = False,
    progress: Progress | None = None,
) -> Fit:
    """Insert compensation and fit it.

    The linear kind becomes ``y + U G ([pool(x); y] - mean) + mean error`` by reduced-rank ridge regression of
    the clean output minus y. Its filters are in the order of what they explain, so that a narrower one is the
    leading block of a wider one. The affine kind gets its factor and offset per channel by regression of y on
    the clean output, which unlike the other way round does not shrink signals.

    Args:
        document: the model, not mapped; it is not changed.
        choices: what to fit, at most one per node.
        split: calibration samples; labels are not looked at.
        device: device model.
        seed: seed of the chips, of generators, and of what is picked of the split and of large maps.
        chips: simulated chips: how many, numbered from ``FIT_CHIPS_START``, or which. A fit on few chips
            corrects those and no others, since all samples that a chip sees share its errors.
        samples: samples that each chip sees, a random pick of its own.
        ridge: penalty on squared coefficients, over the mean square of what they multiply.
        target: model of the same graph whose clean activations are aimed at; default: what the weights of
            ``document`` are made for.
        behind: whether nodes that are compensated already are corrected too, before that compensation.
        progress: told what happens.

    Raises:
        UsageError: an option is out of range, a kind has no closed form, or a node has too many features.
        DataError: there are no samples, or a node's output on them is not finite.
        ModelError: a node cannot be compensated, or ONNX Runtime refuses the model.
    """
    numbers = range(FIT_CHIPS_START, FIT_CHIPS_START + chips) if isinstance(chips, int) else chips
    _check(choices, split, chips=len(numbers), samples=samples, ridge=ridge)
    fitted = document.copy()
    todo = _todo(fitted, choices, behind=behind)
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="cnpass-") as folder,
        (progress or Progress()).task("closed form", len(todo) * len(numbers)) as task,
    ):
        bench = Bench(target or intended(document), device, split, samples, numbers, seed, Path(folder))
        for choice, site in todo:
            kind, random = choice.kind, seed_of(seed, "compensation", choice.node) % 2**31
            width = width_of(choice.ratio, site, kind)
            insertion = insert(fitted, site, kind, width, creator=InsertCompensation.name, seed=random)
            place = Place(choice.node, site.y.name, _seen(insertion).name, site.axis, site.outputs)
            moments, variance = bench.observe(fitted, place, task)
            coefficients = _FITS[kind](insertion, moments, ridge)
            before = np.trace(moments.tt) + moments.count * np.sum(moments.t_mean**2)
            found = [float(error / variance) for error in (before, moments.remaining(coefficients))]
            filters = width if insertion.maps else 0
            results.append(NodeFit(choice.node, kind, filters, *found))
            task.describe(f"{choice.node}: error {found[0]:.3g}, then {found[1]:.3g}")
    return Fit(fitted, tuple(results))


def _check(choices: Sequence[Choice], split: Split, *, chips: int, samples: int, ridge: float) -> None:
    for name, value in (("chips", chips), ("samples", samples)):
        if value < 1:
            raise UsageError(f"{name} is {value}; a closed form needs at least 1")
    if not ridge >= _SMALLEST_RIDGE:
        raise UsageError(f"ridge is {ridge}; it must be at least {_SMALLEST_RIDGE}")
    if not len(split):
        raise DataError("there are no samples to fit compensation on")
    nodes = [choice.node for choice in choices]
    for choice in choices:
        if choice.kind not in _FITS:
            known = " and ".join(_FITS)
            raise UsageError(
                f"the {choice.kind} kind has no closed form (node {choice.node!r}); {known} have"
            )
        if nodes.count(choice.node) > 1:
            raise UsageError(f"node {choice.node!r} is to be compensated twice")


def _todo(document: Document, choices: Sequence[Choice], *, behind: bool) -> list[tuple[Choice, Site]]:
    """The choices with their sites, in the order of the file."""
    sites, reasons = find_sites(document, plan(document), behind=behind)
    for choice in choices:
        site = sites.get(choice.node)
        if site is None:
            raise ModelError(
                f"node {choice.node!r} cannot be compensated: "
                f"{reasons.get(choice.node, 'it is no analog node')}"
            )
        if site.inputs + site.outputs > MAX_FEATURES:
            raise UsageError(
                f"node {choice.node!r} has {site.inputs} inputs and {site.outputs} outputs; "
                f"a closed form takes at most {MAX_FEATURES} together"
            )
    chosen = {choice.node: choice for choice in choices}
    return [(chosen[label], site) for label, site in sites.items() if label in chosen]


def _seen(insertion: Insertion) -> gs.Tensor:
    """What a kind looks at: the generator's input; y alone where there is none."""
    if not insertion.maps:
        return insertion.site.node.outputs[0]
    weight = insertion.generator.weight
    return next(node.inputs[0] for node in insertion.nodes if any(t is weight for t in node.inputs))


def _linear(insertion: Insertion, moments: Moments, ridge: float) -> Float64:
    """Write the linear map of the best rank; filters beyond any use stay as drawn, without effect."""
    found = reduced_rank(moments, insertion.width, ridge)
    (compensator,) = insertion.closing
    _write(insertion.generator, found.generator, -found.generator @ moments.z_mean)
    _write(compensator, found.compensator, moments.t_mean)
    return found.coefficients


def _affine(insertion: Insertion, moments: Moments, ridge: float) -> Float64:
    """Write the factor and the offset of every channel."""
    factors = calibration(moments, ridge)
    offsets = moments.t_mean - (factors - 1) * moments.z_mean
    for constant, values in zip(insertion.constants, (factors, offsets), strict=True):
        constant.values = values.reshape(constant.shape).astype(constant.dtype)
    return np.diag(factors - 1)


_FITS: dict[Kind, Callable[[Insertion, Moments, float], Float64]] = {"linear": _linear, "affine": _affine}
"""For each kind that has a closed form, what writes it; returns coefficients [inputs, outputs]."""


def _write(linear: Linear, weight: Float64, bias: Float64) -> None:
    """Store the leading block of a map, [out, in], and of its bias."""
    for constant, axis, block in ((linear.weight, linear.outputs_axis, weight), (linear.bias, 0, bias)):
        values = constant.values.copy()
        matrix = np.moveaxis(values.reshape(values.shape[:2]), axis, 0)
        matrix[tuple(slice(n) for n in block.shape)] = block
        constant.values = values
