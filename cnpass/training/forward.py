"""Running a lifted model on samples, in the batches that it takes, and what of these memory bears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnpass.data import Split
from cnpass.errors import ModelError
from cnpass.evaluation.feeding import by_sample
from cnpass.training.lift import Lifted
from cnpass.training.rules.dtypes import from_array

LARGEST_TENSOR = 1 << 29
"""Bytes; a pass without gradients holds two such tensors or three."""
_LOOKED_AT = 3


@dataclass(frozen=True)
class Samples:
    """Samples as tensors, in the order of the model's inputs.

    Attributes:
        inputs: One tensor [N, ...] per input.
        labels: Class numbers [N], int64, or None.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None = None

    @classmethod
    def of(cls, split: Split, names: Sequence[str], device: torch.device) -> Samples:
        """Take the arrays of a split to a torch device."""
        inputs = tuple(from_array(split.inputs[name]).to(device) for name in names)
        labels = None if split.y is None else from_array(split.y).to(device)
        return cls(inputs, labels)

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, index: torch.Tensor | slice) -> Samples:
        """Return the samples of an index."""
        return Samples(
            tuple(x[index] for x in self.inputs), None if self.labels is None else self.labels[index]
        )


@dataclass(frozen=True)
class Forward:
    """A lifted model and how samples reach it.

    Attributes:
        module: The model.
        rows: Samples per call where the model fixes that, else None for any number.
    """

    module: Lifted
    rows: int | None = None

    def __call__(self, samples: Samples, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the model's first output for all samples, [N, ...].

        Raises:
            ModelError: It does not have a row, or the same number of rows, for each sample.
        """
        if self.rows is None:
            return self._first(samples, weights)
        total, outputs = len(samples), []
        for start in range(0, total, self.rows):
            index = torch.arange(start, start + self.rows, device=samples.inputs[0].device).clamp(
                max=total - 1
            )
            output = self._first(samples.take(index), weights)
            outputs.append(output[: total - start])
        return torch.cat(outputs)

    def _first(self, samples: Samples, weights: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
        output: torch.Tensor = by_sample(self.module(*samples.inputs, weights=weights)[0], len(samples))
        if len(output) != len(samples):
            raise ModelError(
                f"output '{self.module.output_names[0]}' has {len(output)} rows for {len(samples)} samples,"
                " so there is nothing to train for"
            )
        return output


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types for it
    """Notes the bytes of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found.extend(each.nbytes for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        return result


def samples_at_once(forward: Forward, samples: Samples) -> int:
    """Return how many samples may run together, such that no tensor becomes larger than `LARGEST_TENSOR`.

    Args:
        forward: The model.
        samples: The samples, of which three are looked at.

    Returns:
        The number, at least 1; all of them where the model itself says how many run together, or they are
        fewer than three.
    """
    if forward.rows is not None or len(samples) < _LOOKED_AT:
        return max(1, len(samples))
    sizes = []
    for count in (1, _LOOKED_AT):
        with torch.no_grad(), _Sizes() as seen:
            forward(samples.take(slice(count)))
        sizes.append(seen.found)
    # What does not grow with the samples, such as a weight, does not count.
    growth = (many - one for one, many in zip(*sizes, strict=False))
    return int(min(len(samples), max(1, LARGEST_TENSOR * (_LOOKED_AT - 1) // max(1, *growth))))
