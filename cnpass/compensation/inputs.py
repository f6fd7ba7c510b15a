"""What enters analog nodes: its mean, and the directions along which most of it lies."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnpass.compensation.activations import Rows, Runs, mapped
from cnpass.compensation.builder import Known
from cnpass.compensation.closed_form import FIT_CHIPS_START
from cnpass.compensation.kinds import KINDS
from cnpass.compensation.regression import Float64, Moments
from cnpass.compensation.site import Site, find_sites
from cnpass.document import Document
from cnpass.errors import DataError
from cnpass.mapping import plan
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.ops import IDEAL_CHIP
from cnpass.training.schedule import seed_of

SAMPLES = 512
"""Samples that are looked at: a mean over them is off by a twentieth of the deviation between samples."""
_CHIPS = range(FIT_CHIPS_START, FIT_CHIPS_START + 16)
"""Chips that directions are found on."""
_POSITIONS = 1024
"""Positions per sample that are looked at, on average, at most."""


def look(document: Document, device: DeviceModel, samples: Mapping[str, Rows], *, seed: int = 0) -> Known:
    """Find out what compensation of a model profits from knowing, on chips.

    What overflows on a chip has no directions worth knowing; then they are left out.

    Args:
        document: The model, not mapped.
        device: Device model.
        samples: Samples [N, ...] by input name.
        seed: Seed of the chips.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    factor = float(device.mean(np.ones(1))[0])
    sites, _ = find_sites(document, plan(document), behind=True)
    sites = {label: site for label, site in sites.items() if KINDS["bypass"].unsuited(site) is None}
    try:
        found = moments(mapped(document, device, seed), sites, samples, chips=_CHIPS, seed=seed)
    except DataError:
        return Known(factor=factor)
    return Known({label: directions(gathered) for label, gathered in found.items()}, factor)


def moments(
    document: Document,
    sites: Mapping[str, Site],
    samples: Mapping[str, Rows],
    *,
    chips: Sequence[int] = (IDEAL_CHIP,),
    seed: int = 0,
) -> dict[str, Moments]:
    """Gather first and second moments of what enters nodes, over samples and positions.

    Args:
        document: The model; a mapped one where chips are not the ideal one.
        sites: The nodes by label, of this model before it was mapped.
        samples: Samples [N, ...] by input name.
        chips: Numbers of chips; each runs its share of the samples.
        seed: Seed of the pick among positions.

    Returns:
        Moments of the channels or features, by label.

    Raises:
        DataError: There are no samples, or what enters a node is not finite.
        ModelError: ONNX Runtime refuses the model.
    """
    found = {label: Moments(site.inputs, 0) for label, site in sites.items()}
    with tempfile.TemporaryDirectory(prefix="cnpass-") as folder:
        runs = Runs(document, [site.x.name for site in sites.values()], samples, Path(folder))
        for number, chip in enumerate(chips):
            share = {name: values[number :: len(chips)] for name, values in samples.items()}
            random = np.random.default_rng(seed_of(seed, "positions", number))
            for tensors in runs.tensors(share, chip) if len(next(iter(share.values()))) else ():
                for label, site in sites.items():
                    rows = _rows(tensors[site.x.name], site, random)
                    if not np.isfinite(rows).all():
                        raise DataError(f"node {label!r} is given values that are not finite")
                    found[label].add(rows, rows[:, :0])
    if any(gathered.count == 0 for gathered in found.values()):
        raise DataError("there are no samples to look at")
    return found


def _rows(x: Rows, site: Site, random: np.random.Generator) -> Rows:
    """Return channels or features [n, inputs] at some positions of a batch."""
    rows = np.moveaxis(x, site.axis, -1).reshape(-1, site.inputs)
    wanted = _POSITIONS * len(x)
    if len(rows) <= wanted:
        return rows
    return rows[np.sort(random.choice(len(rows), wanted, replace=False))]


def directions(gathered: Moments) -> Float64:
    """Return orthonormal directions [inputs, inputs], each with most energy of what those before it left.

    They are the eigenvectors of the second moments around zero, not around the mean, since it is energy
    that variation multiplies. Signs are such that the largest entry is positive.
    """
    mean = gathered.z_mean
    second = gathered.zz / gathered.count + np.outer(mean, mean)
    _, vectors = np.linalg.eigh(second)
    vectors = vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    return np.asarray(vectors * np.where(largest < 0, -1.0, 1.0))
