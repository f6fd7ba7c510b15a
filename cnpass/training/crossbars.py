"""Weights on crossbars during training: chips that are drawn to train on, and numbered ones to validate on.

Training draws from torch generators; validation and test chips are numbered chips of the op contract
(`cnpass.runtime.reference.program_weight`), so the three never share a draw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import numpy as np
import torch

from cnpass.errors import ModelError
from cnpass.mapping import MappingPlan
from cnpass.runtime import ops
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.devices.base import TorchDraws
from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import Purpose
from cnpass.runtime.reference import program_weight

_TORCH = cast(Functions, torch)

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Milder:
    """Random numbers of a chip whose variation is a fraction of the device model's.

    Attributes:
        draws: Those of a whole chip.
        strength: 0 leaves what all chips have in common (drift, levels), 1 the device model as it is.
            Standard normals are multiplied by it (for log-normal variation that is a factor on sigma), and so
            are the rates of faults.
        censor: Largest standard normal, before that; what is drawn above it becomes it. None for no limit.
    """

    draws: TorchDraws
    strength: float
    censor: float | None = None

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        drawn = self.draws.normals(purpose)
        if self.censor is not None:
            drawn = drawn.clip(max=self.censor)
        return drawn * self.strength

    def stuck(self, low: Array, high: Array, purpose: int = Purpose.FAULTS) -> tuple[Array, Array]:
        return self.draws.stuck(low * self.strength, high * self.strength, purpose)


@dataclass(frozen=True)
class Crossbars:
    """The device model, and which weights it holds.

    Attributes:
        device: Device model.
        streams: Random stream by key of every weight that sits on a crossbar.
        columns: Axis of such a weight along which crossbar columns are counted; no entry where that is no
            axis of the weight as it is trained.
        copies: Devices per weight, by key of every weight that has several.
        row_axes: Axes that make up crossbar rows, slowest first, by key of every weight some rows of which
            have one more.
    """

    device: DeviceModel
    streams: Mapping[str, int]
    columns: Mapping[str, int]
    copies: Mapping[str, Copies] = field(default_factory=dict)
    row_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: MappingPlan, device: DeviceModel, weights: Weights) -> Self:
        """Take from a mapping plan what concerns the weights of a lifted model, by key.

        Raises:
            ModelError: Rows of a weight differ in copies, and it is trained in another layout.
        """
        columns: dict[str, int] = {}
        copies: dict[str, Copies] = {}
        row_axes: dict[str, tuple[int, ...]] = {}
        for entry in plan.analog:
            node, product = entry.node, entry.product
            if product is None:
                continue
            key = product.weight.key
            if product.copies != SINGLE:
                copies[key] = product.copies
            if node is not None and product.weight.stored_as_root:
                kind = ops.ANALOG_CONV if node.op in {"Conv", ops.ANALOG_CONV} else ops.ANALOG_MATMUL
                columns[key] = ops.column_axis(kind, product.perm)
                if product.copies.extra:
                    row_axes[key] = ops.row_axes(kind, product.perm, len(product.weight.shape))
            elif product.copies.extra:
                raise ModelError(
                    f"node {entry.label!r}: weight {key!r} is stored in another layout than its rows have, so"
                    " all of them must have as many copies; run replicate-weights anew"
                )
        return cls(
            device, {key: s for key, s in plan.streams.items() if key in weights}, columns, copies, row_axes
        )

    def only(self, keys: Collection[str | None]) -> Self:
        """Return the same with some of the weights, the others being ideal."""
        return replace(self, streams={key: s for key, s in self.streams.items() if key in keys})

    def draw(
        self,
        weights: Weights,
        generator: torch.Generator,
        strength: float = 1.0,
        censor: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """Draw one chip to train on; gradients flow through it to the weights.

        Args:
            weights: All weights by key.
            generator: Source of the draw.
            strength: Factor on the deviates and on the rates of faults.
            censor: Standard deviations above which deviates are right-censored, ``min(N, censor)`` (Z. Yan et
                al., "Improving Realistic Worst-Case Performance of NVCiM DNN Accelerators through Training
                with Right-Censored Gaussian Noise", ICCAD 2023); None for deviates as the device has them.

        Returns:
            The programmed tensors by key, for ``Lifted.forward(..., weights=...)``.
        """
        drawn = {}
        for key in self.streams:
            weight, copies = weights[key], self.copies.get(key, SINGLE)
            draws = _Milder(TorchDraws(weight, generator, copies.most), strength, censor)
            programmed = self.device.program(weight, draws, _TORCH, self.columns.get(key))
            more = self._more(key, weight)
            if more is not None:
                chosen = torch.as_tensor(more, device=weight.device)
                total = programmed[:-1].sum(0) + programmed[-1].where(chosen, 0.0)
                drawn[key] = total / (copies.count + chosen.to(weight.dtype))
            else:
                drawn[key] = programmed.mean(0) if copies.count > 1 else programmed
        return drawn

    def _more(self, key: str, weight: torch.Tensor) -> np.ndarray | None:
        """Which of a weight's elements have one device more; None if none has."""
        return self.copies.get(key, SINGLE).more(weight.shape, self.row_axes.get(key, ()))

    def clip(self, weights: Weights, keys: Collection[str], bound: float) -> None:
        """Clip weights on crossbars, in place, to so many standard deviations of their own tensor.

        Deviations are counted from zero (root mean square), which is where conductances are counted from too;
        a tensor whose values are all alike stays as it is. V. Joshi et al., "Accurate deep neural network
        inference using computational phase-change memory", Nature Communications 11, 2473 (2020).

        Args:
            weights: All weights by key.
            keys: Keys that may be clipped; those that are on no crossbar are left alone.
            bound: Largest absolute weight, in standard deviations; above 1.
        """
        with torch.no_grad():
            for key in self.streams:
                if key in keys:
                    weight = weights[key]
                    largest = bound * weight.square().mean().sqrt()
                    weight.clamp_(-largest, largest)

    def chip(self, weights: Weights, number: int, seed: int) -> dict[str, torch.Tensor]:
        """Return what a numbered chip holds, by key, without gradients: the bits that the ops would use.

        The ops compute in float32; weights of another type get these values in their own.
        """
        common: dict[str, Any] = {"seed": seed, "chip": number, "xp": torch}
        return {
            key: program_weight(
                weights[key].detach().float(),
                self.device,
                stream=stream,
                copies=self.copies.get(key, SINGLE).count,
                more=self._more(key, weights[key]),
                column_axis=self.columns.get(key),
                **common,
            ).to(weights[key].dtype)
            for key, stream in self.streams.items()
        }
