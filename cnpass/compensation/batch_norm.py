"""BatchNormalization with statistics for one chip.

As in AdaBS (V. Joshi et al., Nature Communications 11, 2473, 2020), mean and variance of what a normalisation
reads are estimated anew on calibration inputs that the chip computes. Here they are chosen such that every
channel leaves the normalisation with the mean and the deviation that it has on the ideal chip for the same
inputs. Where the stored statistics are those of the calibration inputs that is the same; where they are not,
nothing but the chip's share is corrected.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.bench import Bench, Place
from cnpass.compensation.closed_form import MAX_FEATURES, Fit, NodeFit
from cnpass.compensation.regression import LARGEST_FACTOR, Float64, Moments
from cnpass.data import Split
from cnpass.document import Document
from cnpass.nodes import label
from cnpass.passes.fold_batch_norm import batch_norms, trains
from cnpass.passes.mean_gain import intended
from cnpass.progress import Progress
from cnpass.runtime.devices import DeviceModel
from cnpass.weights import resolve

_EPSILON = 1e-5
"""ONNX's default."""


def recalibrate(
    document: Document,
    split: Split,
    device: DeviceModel,
    *,
    seed: int,
    chip: int,
    samples: int,
    progress: Progress,
) -> Fit:
    """Fit the statistics of every BatchNormalization to one chip, in the order of the file.

    Args:
        document: the model, not mapped; it is not changed.
        split: calibration samples; labels are not looked at.
        device: device model.
        seed: seed of the chips and of what is picked of large maps.
        chip: number of the chip.
        samples: samples that the chip sees.
        progress: told what happens.

    Returns:
        The model, and how well every normalisation could be fitted; none where there is none in inference
        mode with constant statistics of at most half of ``MAX_FEATURES`` channels.

    Raises:
        DataError: values in front of a normalisation are not finite.
        ModelError: ONNX Runtime refuses the model.
    """
    fitted = document.copy()
    found = [(norm, statistics) for norm in batch_norms(fitted) if (statistics := _statistics(fitted, norm))]
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="cnpass-") as folder,
        progress.task("normalisation", len(found)) as task,
    ):
        bench = Bench(intended(document), device, split, samples, range(chip, chip + 1), seed, Path(folder))
        for norm, (scale, mean, variance) in found:
            name = str(norm.inputs[0].name)
            moments, _ = bench.observe(fitted, Place(label(norm), name, name, 1, mean.size), task)
            floored = variance + float(norm.attrs.get("epsilon", _EPSILON))
            factor = _factor(moments)
            clean = moments.z_mean + moments.t_mean
            _set(fitted, norm, 3, moments.z_mean - (clean - mean) / factor)
            _set(fitted, norm, 4, np.maximum(floored / factor**2 - (floored - variance), 0.0))
            results.append(NodeFit(label(norm), None, 0, *_errors(moments, factor, scale**2 / floored)))
    return Fit(fitted, tuple(results))


def _statistics(document: Document, norm: gs.Node) -> tuple[Float64, ...] | None:
    """Scale, mean and variance by channel; None where they cannot be set."""
    if trains(norm, document.opset) or not norm.attrs.get("spatial", 1):
        return None
    weights = [weight for index in (1, 3, 4) if (weight := resolve(norm.inputs[index]))]
    found = tuple(weight.values(document.opset).astype(np.float64) for weight in weights)
    if len(found) < 3 or found[0].ndim != 1 or 2 * found[0].size > MAX_FEATURES:
        return None
    return found


def _factor(moments: Moments) -> Float64:
    """Deviation of every channel on the ideal chip over that on this one; 1 where one of them is constant."""
    zz, zt, tt = (np.diag(matrix) for matrix in (moments.zz, moments.zt, moments.tt))
    wanted = zz + 2 * zt + tt
    ratio = np.divide(wanted, zz, out=np.ones_like(zz), where=(zz > 0) & (wanted > 0))
    found: Float64 = np.clip(np.sqrt(ratio), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return found


def _errors(moments: Moments, factor: Float64, gain: Float64) -> tuple[float, float]:
    """Squared error of the output over its variance, as it was and with a factor; gain is that of squares."""
    zz, zt, tt = (np.diag(matrix) for matrix in (moments.zz, moments.zt, moments.tt))
    before = tt + moments.count * moments.t_mean**2
    after = tt - (factor - 1) * (2 * zt - zz * (factor - 1))
    spread = float(gain @ (zz + 2 * zt + tt)) or 1.0
    return float(gain @ before) / spread, float(gain @ after) / spread


def _set(document: Document, norm: gs.Node, index: int, values: Float64) -> None:
    """Give a normalisation a statistic: in its own constant, or in a new one if that has other readers."""
    old = norm.inputs[index]
    weight = resolve(old)
    assert weight is not None  # noqa: S101 (it was read before)
    new = values.astype(weight.dtype)
    if isinstance(old, gs.Constant) and len(old.outputs) == 1 and old.name not in document.captured:
        old.values = new
    else:
        norm.inputs[index] = document.initializer(f"{old.name}.chip", new)
