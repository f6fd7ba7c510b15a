"""Least squares from moments against direct solutions on the data themselves."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.compensation.regression import LARGEST_FACTOR, Moments, calibration, reduced_rank

RIDGE = 0.05


@pytest.fixture(scope="module")
def data():
    """Correlated z [500, 7] and t [500, 4] that depends on it, both far from zero."""
    random = np.random.default_rng(0)
    z = random.standard_normal((500, 7)) @ random.standard_normal((7, 7)) + 30
    t = z @ random.standard_normal((7, 4)) + 2 * random.standard_normal((500, 4)) - 50
    return z, t


@pytest.fixture(scope="module")
def moments(data):
    return gathered(*data)


def gathered(z, t, cuts=(3, 3, 200)):
    found = Moments(z.shape[1], t.shape[1])
    for part_z, part_t in zip(np.split(z, cuts), np.split(t, cuts), strict=True):
        found.add(part_z, part_t)
    return found


def centred(data):
    return tuple(values - values.mean(axis=0) for values in data)


def extended(data):
    """The centred data with rows that turn the penalty into a residual."""
    z, t = centred(data)
    root = np.sqrt(RIDGE * np.trace(z.T @ z) / z.shape[1])
    return np.vstack([z, root * np.eye(z.shape[1])]), np.vstack([t, np.zeros((z.shape[1], t.shape[1]))])


def test_moments_of_batches_are_those_of_the_whole(data, moments):
    z, t = centred(data)
    assert moments.count == 500
    np.testing.assert_allclose(moments.z_mean, data[0].mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.t_mean, data[1].mean(axis=0), rtol=1e-13)
    for name, expected in (("zz", z.T @ z), ("zt", z.T @ t), ("tt", t.T @ t)):
        np.testing.assert_allclose(getattr(moments, name), expected, rtol=1e-10, err_msg=name)


def test_moments_do_not_cancel_far_from_zero():
    random = np.random.default_rng(1)
    small = random.standard_normal((1000, 2))
    found = gathered((small[:, :1] + 1e7).astype(np.float64), small[:, 1:] - 1e7)
    assert found.zz[0, 0] == pytest.approx(999 * np.var(small[:, 0], ddof=1), rel=1e-6)


def test_full_rank_is_the_ridge_solution(data, moments):
    expected, *_ = np.linalg.lstsq(*extended(data), rcond=None)
    np.testing.assert_allclose(reduced_rank(moments, 4, RIDGE).coefficients, expected, rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_limited_rank_is_the_svd_of_the_fitted_values(data, moments, rank):
    z, t = extended(data)
    ridge, *_ = np.linalg.lstsq(z, t, rcond=None)
    _, _, right = np.linalg.svd(z @ ridge, full_matrices=False)
    expected = ridge @ right[:rank].T @ right[:rank]
    found = reduced_rank(moments, rank, RIDGE)
    assert found.generator.shape == (rank, 7)
    assert found.compensator.shape == (4, rank)
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-8)


def test_no_other_map_of_that_rank_fits_better(data, moments):
    z, t = extended(data)
    found = reduced_rank(moments, 2, RIDGE).coefficients
    best = np.sum((t - z @ found) ** 2)
    random = np.random.default_rng(2)
    for _ in range(5):  # alternating least squares from anywhere
        columns = random.standard_normal((4, 2))
        for _ in range(200):
            rows, *_ = np.linalg.lstsq(z, t @ np.linalg.pinv(columns.T), rcond=None)
            columns = np.linalg.lstsq(z @ rows, t, rcond=None)[0].T
        other = np.sum((t - z @ rows @ columns.T) ** 2)
        assert best <= other * (1 + 1e-12)
        assert other == pytest.approx(best, rel=1e-6)
    full = reduced_rank(moments, 4, RIDGE).coefficients
    assert np.sum((t - z @ full) ** 2) < best


def test_a_narrow_solution_is_the_leading_block_of_a_wide_one(moments):
    wide, narrow = reduced_rank(moments, 4, RIDGE), reduced_rank(moments, 2, RIDGE)
    np.testing.assert_allclose(narrow.generator, wide.generator[:2])
    np.testing.assert_allclose(narrow.compensator, wide.compensator[:, :2])


def test_recovers_a_map_of_low_rank_exactly():
    random = np.random.default_rng(3)
    true = random.standard_normal((6, 2)) @ random.standard_normal((2, 5))
    z = random.standard_normal((300, 6))
    found = reduced_rank(gathered(z, z @ true + 7), 2, 1e-9)
    np.testing.assert_allclose(found.coefficients, true, atol=1e-7)


def test_rank_is_bounded_by_what_there_is(moments):
    assert reduced_rank(moments, 100, RIDGE).generator.shape == (4, 7)


def test_what_remains_is_the_residual(data, moments):
    z, t = centred(data)
    found = reduced_rank(moments, 2, RIDGE).coefficients
    assert moments.remaining(found) == pytest.approx(np.sum((t - z @ found) ** 2), rel=1e-9)


def test_inputs_that_never_vary_explain_nothing():
    z, t = np.ones((50, 3)), np.arange(100.0).reshape(50, 2)
    found = gathered(z, t, cuts=(20,))
    assert not reduced_rank(found, 2, RIDGE).coefficients.any()
    assert (calibration(gathered(z[:, :2], t, cuts=(20,)), RIDGE) == 1).all()


def test_a_dead_channel_gets_no_coefficient(data):
    z, t = data[0].copy(), data[1]
    z[:, 2] = 0
    found = reduced_rank(gathered(z, t), 4, RIDGE).coefficients
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[2], 0, atol=1e-12)


def test_calibration_undoes_the_response_of_each_channel(data):
    """The response is y fitted on the clean c; moments hold y and c - y."""
    y, c = data[0][:, :4], data[1]
    expected = [np.polyfit(c[:, i], y[:, i], 1)[0] for i in range(4)]
    assert min(expected) < 0 < 1 / LARGEST_FACTOR < max(expected)
    found = calibration(gathered(y, c - y), 1e-9)
    np.testing.assert_allclose(found, 1 / np.maximum(expected, 1 / LARGEST_FACTOR), rtol=1e-5)


def test_calibration_is_not_shrunk_by_noise():
    random = np.random.default_rng(4)
    c = random.standard_normal((200_000, 2))
    y = c * [2.0, 0.5] + random.standard_normal(c.shape) + 3
    np.testing.assert_allclose(calibration(gathered(y, c - y), 1e-9), [0.5, 2.0], rtol=0.02)


def test_a_large_penalty_leaves_channels_as_they_are(data):
    y, c = data[0][:, :4], data[1]
    np.testing.assert_allclose(calibration(gathered(y, c - y), 1e9), 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (5, 5)])
@pytest.mark.parametrize("ridge", [1e-6, 0.05, 2.0])
def test_the_closed_form_by_eigenvectors_agrees(shape, ridge):
    """B (V V') with V the leading eigenvectors of T'Z (Z'Z + p I)^-1 Z'T,."""
    inputs, outputs = shape
    random = np.random.default_rng(5)
    z = random.standard_normal((80, inputs)) * np.logspace(0, -2, inputs) + 3
    z[:, 1] = z[:, 0]  # of less than full rank: only the ridge makes the solution unique
    t = z @ random.standard_normal((inputs, outputs)) + random.standard_normal((80, outputs))
    z0, t0 = centred((z, t))
    gram = z0.T @ z0 + ridge * np.trace(z0.T @ z0) / inputs * np.eye(inputs)
    full = np.linalg.inv(gram) @ z0.T @ t0
    values, vectors = np.linalg.eigh(t0.T @ z0 @ full)
    for rank in range(1, min(shape) + 1):
        leading = vectors[:, np.argsort(values)[::-1][:rank]]
        found = reduced_rank(gathered(z, t, cuts=(40,)), rank, ridge)
        np.testing.assert_allclose(found.coefficients, full @ leading @ leading.T, rtol=1e-5, atol=1e-7)
