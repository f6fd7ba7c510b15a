"""The Lipschitz penalty of CorrectNet (reconstructed): every layer's matrix near a scaled isometry.

For a weight W of shape [out, in], the penalty is ``||W W^T - lambda^2 I||_F^2``. A layer with all singular
values equal to lambda scales every input by lambda; variation multiplies that by at most ``mu + 3 s`` with
high probability, if it acted as one factor, so that ``lambda = k / (mu + 3 s)`` bounds the noisy layer by
k. Independent variation per weight does not scale a matrix so: the bound is a heuristic, and its strength
is for validation to set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from cnpass.runtime.devices import DeviceModel


def target_norm(device: DeviceModel, k: float = 1.0, copies: int = 1) -> float:
    """Return lambda, the singular value that the penalty asks for.

    Args:
        device: Device model; mean and deviation of a programmed weight of 1 give mu and s. For log-normal
            variation these are ``exp(sigma^2 / 2)`` and ``sqrt((exp(sigma^2) - 1) exp(sigma^2))``.
        k: Bound on the layer under variation.
        copies: Devices of the weights that have fewest; their mean deviates by ``s / sqrt(copies)``.
    """
    mean, deviation = float(device.mean(1.0)), float(device.std(1.0)) / math.sqrt(copies)
    return k / (mean + 3 * deviation)


def penalty(matrices: Iterable[torch.Tensor], norm: float) -> torch.Tensor:
    """Sum ``||W W^T - norm^2 I||_F^2`` over matrices.

    The smaller of W W^T and W^T W is formed: both have the same non-zero eigenvalues, so the two penalties
    differ by the constant ``norm^4 |out - in|``, which is left out.

    Args:
        matrices: Tensors [groups, out, in]; the groups of a convolution are separate matrices.
        norm: Singular value to aim at.

    Returns:
        Scalar; differentiable.
    """
    total = torch.zeros(())
    for matrix in matrices:
        w = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.transpose(-1, -2)
        gram = w @ w.transpose(-1, -2)
        eye = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
        total = total.to(gram) + (gram - norm**2 * eye).square().sum()
    return total
