"""Least squares from second moments: ridge regression of limited rank, and calibration per channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

LARGEST_FACTOR = 4.0
"""Channels that hardly respond to their own clean value are not amplified further."""


class Moments:
    """Mean and centred second moments of two sets of variables, gathered batch by batch in float64.

    Batches are merged as in T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979, so that nothing cancels where means are far from zero.

    Args:
        inputs: number of variables z that a regression starts from.
        outputs: number of variables t that it aims at.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self._inputs = inputs
        self._mean = np.zeros(inputs + outputs)
        self._scatter = np.zeros((inputs + outputs, inputs + outputs))

    def add(self, z: npt.NDArray[np.generic], t: npt.NDArray[np.generic]) -> None:
        """Count observations: z [n, inputs] and t [n, outputs]."""
        rows = np.concatenate([z, t], axis=1, dtype=np.float64)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        rows -= mean
        step = mean - self._mean
        total = self.count + len(rows)
        self._scatter += rows.T @ rows
        self._scatter += np.outer(step, step) * (self.count * len(rows) / total)
        self._mean += step * (len(rows) / total)
        self.count = total

    @property
    def z_mean(self) -> Float64:
        """Mean of z, [inputs]."""
        return self._mean[: self._inputs]

    @property
    def t_mean(self) -> Float64:
        """Mean of t, [outputs]."""
        return self._mean[self._inputs :]

    @property
    def zz(self) -> Float64:
        """Sum of (z - mean)(z - mean)', [inputs, inputs]."""
        return self._scatter[: self._inputs, : self._inputs]

    @property
    def zt(self) -> Float64:
        """Sum of (z - mean)(t - mean)', [inputs, outputs]."""
        return self._scatter[: self._inputs, self._inputs :]

    @property
    def tt(self) -> Float64:
        """Sum of (t - mean)(t - mean)', [outputs, outputs]."""
        return self._scatter[self._inputs :, self._inputs :]

    def penalty(self, ridge: float) -> float:
        """Weight of the squared coefficients: ``ridge`` times the mean diagonal element of ``zz``."""
        return ridge * float(np.trace(self.zz)) / self._inputs

    def remaining(self, coefficients: Float64) -> float:
        """Sum of |t - predicted|^2 with coefficients [inputs, outputs] and the best offset."""
        explained = 2 * self.zt - self.zz @ coefficients
        return float(np.trace(self.tt) - np.sum(coefficients * explained))


@dataclass(frozen=True)
class LowRank:
    """The prediction ``t = U (G (z - mean z)) + mean t``.

    Attributes:
        generator: G [rank, inputs]; rows in the order of what they explain, so that the first k rows, with
            the first k columns of U, are the solution of rank k.
        compensator: U [outputs, rank], orthonormal columns.
    """

    generator: Float64
    compensator: Float64

    @property
    def coefficients(self) -> Float64:
        """The whole map, [inputs, outputs]."""
        return (self.compensator @ self.generator).T


def reduced_rank(moments: Moments, rank: int, ridge: float) -> LowRank:
    """Fit t by z with a map of limited rank and a free offset.

    Minimises ``|T - Z B|^2 + p |B|^2`` over B of at most that rank, with Z and T centred. Let ``L L'`` be
    ``Z'Z + p I``, and ``P S V'`` the singular value decomposition of ``L^-1 Z'T``. The ridge solution is
    ``L^-T P S V'``; the best one of rank r keeps the r largest singular values, which are those of the ridge
    solution's fitted values on the data extended by ``sqrt(p) I`` (A. Mukherjee, J. Zhu, "Reduced rank ridge
    regression and its kernel extensions", Statistical Analysis and Data Mining 4(6), 2011).

    Args:
        moments: of z and t.
        rank: at least 1; no more than ``min(inputs, outputs)`` is used.
        ridge: positive; p is ``moments.penalty(ridge)``.
    """
    inputs, outputs = moments.zt.shape
    rank = min(rank, inputs, outputs)
    penalty = moments.penalty(ridge)
    if penalty == 0:  # z never varies: the offset says it all
        return LowRank(np.zeros((rank, inputs)), np.eye(outputs, rank))
    lower = np.linalg.cholesky(moments.zz + penalty * np.eye(inputs))
    left, values, right = np.linalg.svd(np.linalg.solve(lower, moments.zt), full_matrices=False)
    generator = np.linalg.solve(lower.T, left[:, :rank] * values[:rank]).T
    return LowRank(generator, right[:rank].T)


def calibration(moments: Moments, ridge: float) -> Float64:
    """Find a factor per channel that undoes what happened to it: y = a c + b + error, so c is (y - b) / a.

    That is classical calibration: a is fitted by least squares, y on c. To fit c on y has less squared error,
    but shrinks every signal by the share of noise in it, layer after layer, which networks bear worse.

    Args:
        moments: of y and of c - y, both over the same channels.
        ridge: positive; the penalty is ``moments.penalty(ridge)`` times the square of a - 1.

    Returns:
        1 / a, [channels], at most `LARGEST_FACTOR`.
    """
    penalty = moments.penalty(ridge)
    if penalty == 0:
        return np.ones(len(moments.zz))
    yy, yt, tt = (np.diag(matrix) for matrix in (moments.zz, moments.zt, moments.tt))
    response = (yy + yt + penalty) / (yy + 2 * yt + tt + penalty)
    found: Float64 = 1 / np.maximum(response, 1 / LARGEST_FACTOR)
    return found
