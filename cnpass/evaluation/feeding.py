"""How samples reach a model: in batches where the model allows it, else a fixed number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cnpass import batching
from cnpass.data.dataset import Array
from cnpass.document import Document
from cnpass.errors import CnpassError, ModelError
from cnpass.runtime.library import has_library
from cnpass.runtime.session import Session

CACHE_BYTES = 4 << 20
"""Inputs of one batch stay below this, so that what lies between two nodes stays in cache."""
MAX_BATCH = 64
MAX_PORTABLE_BATCH = 256
"""Function bodies draw the chip anew in every run, so there larger batches pay."""
LARGEST_RUN = 1 << 34
"""Bytes of inputs; a model that fixes a batch of more is refused."""
PROBES = 3
"""Samples on which results of one batch and of one sample at a time are compared."""
TOLERANCE = 1e-4
"""Largest difference allowed there, relative to the largest output."""


@dataclass(frozen=True)
class Feed:
    """How samples are cut into runs.

    Attributes:
        batch: samples per run.
        padded: whether a run always needs that many, so that the last is filled up by repetition.
    """

    batch: int
    padded: bool = False

    def runs(self, inputs: Mapping[str, Array]) -> Iterator[tuple[slice, dict[str, Array]]]:
        """The samples of each run, and the arrays to feed."""
        total = len(next(iter(inputs.values())))
        for start in range(0, total, self.batch):
            taken = slice(start, min(start + self.batch, total))
            feeds = {name: array[taken] for name, array in inputs.items()}
            if self.padded and taken.stop - start < self.batch:
                index = np.minimum(np.arange(start, start + self.batch), total - 1)
                feeds = {name: array[index] for name, array in inputs.items()}
            yield taken, feeds


def first_outputs(
    session: Session, inputs: Mapping[str, Array], feed: Feed, chip: int = -1
) -> Iterator[Array]:
    """First output of the model for each run, without the rows of samples that only fill up.

    Raises:
        ModelError: it is no tensor of numbers.
    """
    for samples, run, output in _runs(session, inputs, feed, chip):
        yield without_filling(output, samples, run)


def without_filling(tensor: Array, samples: int, run: int) -> Array:
    """Rows of a tensor that belong to samples, and not to those that only fill a run up.

    Args:
        tensor: [run or a multiple, ...]; one without samples along its first axis stays as it is.
        samples: how many the run is for.
        run: how many it has.
    """
    if samples == run or not tensor.ndim or len(tensor) % run:
        return tensor
    return tensor[: samples * (len(tensor) // run)]


def sample_outputs(
    session: Session, inputs: Mapping[str, Array], feed: Feed, chip: int = -1
) -> Iterator[Array]:
    """First output of the model for the samples of each run, as `by_sample` arranges it.

    Of an output without an axis of samples a whole run is one row, samples that only fill up included.

    Raises:
        ModelError: it is no tensor of numbers, or its shape depends on what is in a sample.
    """
    shape: tuple[int, ...] | None = None
    for samples, run, output in _runs(session, inputs, feed, chip):
        arranged = by_sample(output, run)
        arranged = arranged[:samples] if len(arranged) == run else output[None]
        shape = arranged.shape[1:] if shape is None else shape
        if arranged.shape[1:] != shape:
            raise ModelError(
                f"the shape of the model's first output '{session.outputs[0]}' depends on the samples "
                f"({list(arranged.shape[1:])} after {list(shape)}), so there are no figures to take of it"
            )
        yield arranged


def by_sample(output: Any, samples: int) -> Any:
    """The output of one run with samples along the first axis.

    Rows of a sample that the model folds into the first axis get an axis of their own; so does an output
    without an axis of samples if there is one sample. Other shapes stay as they are.

    Args:
        output: an array or a torch tensor.
        samples: how many the run had.
    """
    shape = tuple(output.shape)
    if not shape:
        return output.reshape(1)
    if shape[0] == samples or shape[0] % samples:
        return output
    return output.reshape(samples, shape[0] // samples, *shape[1:])


def _runs(
    session: Session, inputs: Mapping[str, Array], feed: Feed, chip: int
) -> Iterator[tuple[int, int, Array]]:
    """For each run how many samples it is for, how many it has, and the first output."""
    for taken, feeds in feed.runs(inputs):
        output = session.run(feeds, chip=chip, first_sample=taken.start)[0]
        dtype = getattr(output, "dtype", None)  # sequences and maps have none
        if dtype is None or dtype.kind in "OSU":
            raise ModelError(
                f"the model's first output '{session.outputs[0]}' is no tensor of numbers, which is what "
                "figures are taken of; list another output first"
            )
        yield taken.stop - taken.start, len(next(iter(feeds.values()))), output


def open_session(document: Document, folder: Path, name: str) -> Session:
    """A session for a document in its present state, whatever its size.

    Args:
        document: the model.
        folder: where the model is saved for the session, if need be.
        name: name of the file there.
    """
    return Session(save(document, folder, name))


def save(document: Document, folder: Path, name: str) -> Path:
    """Write a document into a folder of our own, replacing what had that name."""
    path = folder / f"{name}.onnx"
    document.save(path, force=True)
    return path


def arrange(
    document: Document, inputs: Mapping[str, Array], folder: Path
) -> tuple[Document, Feed, str | None]:
    """Find out how to feed a model, freeing its batch size where that is safe.

    Args:
        document: the model; not changed.
        inputs: samples by input name.
        folder: for models that sessions read.

    Returns:
        The model to use, how to feed it, and a sentence if that is not the usual way.

    Raises:
        ModelError: ONNX Runtime refuses the model, or its batch is larger than memory.
    """
    probes = {name: array[:PROBES] for name, array in inputs.items()}
    size = sum(array[0].nbytes for array in inputs.values())
    largest = MAX_BATCH if has_library() else MAX_PORTABLE_BATCH
    batch = max(1, min(largest, CACHE_BYTES // max(1, size)))
    try:
        fixed = batching.fixed_batch(document.to_proto())
    except batching.NotFreeableError as reason:
        return document, Feed(1), f"samples run one by one: {reason}"
    if (fixed or 0) * size > LARGEST_RUN:
        raise ModelError(f"the model fixes a batch of {fixed} samples, which would take too much memory")
    if fixed is None:
        session = open_session(document, folder, "probe")
        if _agree(session, Feed(1), session, Feed(PROBES), probes):
            return document, Feed(batch), None
        return document, Feed(1), "samples run one by one: in a batch the model gives other results"
    session = open_session(document, folder, "probe")
    alone = Feed(fixed, padded=True)
    how = f"samples run {fixed} at a time, as the model fixes it"
    try:
        freed = Document.from_proto(_free(document, probes, alone), document.base_dir)
    except batching.NotFreeableError as reason:
        return document, alone, f"{how}: {reason}"
    if not _agree(session, alone, open_session(freed, folder, "freed"), Feed(PROBES), probes):
        return document, alone, f"{how}: with the batch freed it gives other results"
    return (
        freed,
        Feed(batch),
        f"batch size freed (the model fixes {fixed}); equal results on {PROBES} samples",
    )


def _free(document: Document, probes: Mapping[str, Array], feed: Feed) -> onnx.ModelProto:
    """The model with its batch size free.

    The shapes of all tensors come from a run of the model with every tensor as an output.
    """
    try:
        traced = document.embedded()
        known = {value.name for value in traced.graph.output}
        names = [name for node in traced.graph.node for name in node.output if name and name not in known]
        traced.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = Session(traced)
        _, feeds = next(feed.runs(probes))
        outputs = session.run(feeds)
    except (CnpassError, ValueError) as error:  # protobuf gives ValueError for models that are too large
        raise batching.NotFreeableError(f"its tensors cannot be looked at ({error})") from error
    shapes = {name: array.shape for name, array in feeds.items()}
    for name, output in zip(session.outputs, outputs, strict=True):
        shape = getattr(output, "shape", None)  # sequences and maps have none
        if shape is not None:
            shapes[name] = shape
    return batching.free(document.to_proto(), shapes)


def _agree(
    one: Session, one_feed: Feed, other: Session, other_feed: Feed, probes: Mapping[str, Array]
) -> bool:
    """Whether two ways of running samples give the same first output."""
    expected = np.concatenate(list(sample_outputs(one, probes, one_feed)))
    try:
        got = np.concatenate(list(sample_outputs(other, probes, other_feed)))
    except (CnpassError, ValueError):
        return False
    if got.shape != expected.shape:
        return False
    scale = float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected)))
    return np.allclose(got, expected, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
