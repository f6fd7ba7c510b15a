"""Activations inside a model, on the clean model and on simulated chips, from ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.evaluation import feeding
from cnpass.nodes import captured, leading_to
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.library import has_library
from cnpass.runtime.ops import IDEAL_CHIP, META_CHIP_INPUT, META_FIRST_SAMPLE_INPUT
from cnpass.training.schedule import seed_of

Rows = npt.NDArray[np.generic]

_BATCH = 16
"""Samples at a time where several tensors are looked at: what is made of them may be many times as large."""
_POSITIONS = 64
"""Positions per sample that are looked at, on average; neighbours in a map say much the same."""


def mapped(document: Document, device: DeviceModel, seed: int) -> Document:
    """Return a copy of a document that runs on simulated chips."""
    twin = document.copy()
    MapCrossbar(device=device, seed=seed, portable="auto" if has_library() else "always")(twin)
    return twin


class Tap:
    """One tensor of a model as observations: rows over its axis of channels or features.

    Of a tensor with many positions per sample some are picked at random. The pick depends on seed, size and
    place in the samples only, so that taps of one tensor in two models, or on two chips, give matching rows.

    Args:
        document: the model; not changed. Only what the tensor depends on runs.
        tensor: name of the tensor.
        axis: its axis of channels or features.
        probes: some samples by input name, on which it is found out how they can be fed.
        seed: seed of the pick.
        folder: where the model is saved for its session.

    Raises:
        ModelError: the model has no such tensor, or ONNX Runtime refuses it.
    """

    def __init__(
        self,
        document: Document,
        tensor: str,
        axis: int,
        probes: Mapping[str, Rows],
        *,
        seed: int,
        folder: Path,
    ) -> None:
        self._axis, self._seed = axis, seed
        cut = _cut(document, tensor)
        self._varies = META_CHIP_INPUT in cut.metadata
        arranged, self._feed, _ = feeding.arrange(cut, probes, folder)
        self._session = feeding.open_session(arranged, folder, "tap")

    def rows(self, inputs: Mapping[str, Rows], chip: int = IDEAL_CHIP) -> Iterator[Rows]:
        """Return rows [n, channels or features] of some samples, one array per run of the model.

        A tensor before all analog nodes is the same on every chip.
        """
        chip = chip if self._varies else IDEAL_CHIP
        outputs = feeding.first_outputs(self._session, inputs, self._feed, chip)
        for number, output in enumerate(outputs):
            rows = np.moveaxis(output, self._axis, -1).reshape(-1, output.shape[self._axis])
            yield rows[self._pick(len(rows), _POSITIONS * len(output), number)]

    def _pick(self, rows: int, wanted: int, run: int) -> slice | npt.NDArray[np.int64]:
        if rows <= wanted:
            return slice(None)
        random = np.random.default_rng(seed_of(self._seed, "positions", run))
        return np.sort(random.choice(rows, wanted, replace=False))


class Runs:
    """A model's own tensors, several at once.

    Args:
        document: the model; not changed.
        names: of the tensors; inputs of the model are given, too.
        probes: some samples [N, ...] by input name, on which it is found out how they can be fed.
        folder: where the model is saved for its session.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        DataError: the samples do not fit.
    """

    def __init__(
        self, document: Document, names: Iterable[str], probes: Mapping[str, Rows], folder: Path
    ) -> None:
        arranged, feed, _ = feeding.arrange(document.copy(), probes, folder)
        tensors, known = arranged.tensors(), {tensor.name for tensor in arranged.graph.outputs}
        wanted = dict.fromkeys(name for name in names if name not in probes and name not in known)
        arranged.graph.outputs.extend(tensors[name] for name in wanted)
        self._session = feeding.open_session(arranged, folder, "tensors")
        self._feed = feed if feed.padded else feeding.Feed(min(feed.batch, _BATCH))

    def tensors(self, inputs: Mapping[str, Rows], chip: int = IDEAL_CHIP) -> Iterator[dict[str, Rows]]:
        """Return tensors by name for some samples, one batch of these after the other."""
        for taken, feeds in self._feed.runs(inputs):
            outputs = self._session.run(feeds, chip=chip)
            tensors = {**feeds, **dict(zip(self._session.outputs, outputs, strict=True))}
            samples, run = taken.stop - taken.start, len(next(iter(feeds.values())))
            yield {n: feeding.without_filling(tensor, samples, run) for n, tensor in tensors.items()}


def _cut(document: Document, tensor: str) -> Document:
    """Return a copy with one tensor as its only output, and no node that it does not need."""
    twin = document.copy()
    tensors = twin.tensors()
    if tensor not in tensors:
        raise ModelError(f"{document.path or 'the model'} has no tensor {tensor!r}")
    needed = leading_to(tensors[tensor], tensors)
    twin.graph.nodes[:] = [node for node in twin.graph.nodes if id(node) in needed]
    twin.graph.outputs[:] = [tensors[tensor]]
    read = {name for n in twin.graph.nodes for name in (*(t.name for t in n.inputs), *captured(n))}
    for selector in (META_CHIP_INPUT, META_FIRST_SAMPLE_INPUT):
        name = twin.metadata.get(selector)
        if name is not None and name not in read:
            del twin.metadata[selector]
            twin.graph.inputs[:] = [each for each in twin.graph.inputs if each.name != name]
    return twin
