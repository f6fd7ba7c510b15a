"""Bypass compensation: what leaves the crossbar's input, and what that takes from the error."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from cnpass.compensation import inputs
from cnpass.compensation.activations import mapped
from cnpass.compensation.builder import Known
from cnpass.compensation.insertion import insert
from cnpass.compensation.regression import Moments
from cnpass.compensation.site import Site, find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.runtime.devices import make_device
from cnpass.runtime.session import Session

CHANNELS = 6


def _site(document: Document) -> Site:
    (site,) = find_sites(document, plan(document))[0].values()
    return site


def _samples(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Positive values whose channels depend on each other, as behind a Relu."""
    mixed = np.einsum(
        "ij,nj...->ni...", generator.normal(size=(shape[1], shape[1])), generator.normal(size=shape)
    )
    return np.maximum(mixed + 0.5, 0).astype(np.float32)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def document(single, generator) -> Document:
    weight = generator.normal(size=(5, CHANNELS, 3, 3)).astype(np.float32)
    return Document.from_proto(single("Conv", ("n", CHANNELS, 7, 7), weight, pads=[1, 1, 1, 1]))


@pytest.fixture
def images(generator) -> np.ndarray:
    return _samples(generator, 40, CHANNELS, 7, 7)


def test_moments_are_those_of_all_channels_over_samples_and_positions(document, images) -> None:
    found = inputs.moments(document, {"site": _site(document)}, {"x": images})["site"]
    rows = images.transpose(0, 2, 3, 1).reshape(-1, CHANNELS).astype(np.float64)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.z_mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.zz / found.count, np.cov(rows.T, bias=True), rtol=1e-5, atol=1e-8)


def test_samples_that_fill_up_a_fixed_batch_do_not_count(build, generator) -> None:
    """Its statistics over the batch keep the model from having another one."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["moved"]),
        helper.make_node("Add", ["moved", "mean"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["product"], "site"),
        helper.make_node("Add", ["product", "mean"], ["y"]),
    ]
    weight = generator.normal(size=(3, 3)).astype(np.float32)
    document = Document.from_proto(build(nodes, {"w": weight}, inputs={"x": [16, 3]}, opset=17))
    x = generator.normal(size=(10, 3)).astype(np.float32)
    found = inputs.moments(document, {"site": _site(document)}, {"x": x})["site"]
    assert found.count == 10
    np.testing.assert_allclose(found.z_mean, x.mean(0), atol=1e-6)


def test_directions_are_the_right_singular_vectors_of_what_enters(generator) -> None:
    rows = _samples(generator, 300, CHANNELS).astype(np.float64)
    moments = Moments(CHANNELS, 0)
    moments.add(rows, rows[:, :0])
    found = inputs.directions(moments)
    np.testing.assert_allclose(found.T @ found, np.eye(CHANNELS), atol=1e-12)
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(found * right.T, axis=0)), 1, rtol=1e-9)
    assert all(column[np.abs(column).argmax()] > 0 for column in found.T)


@pytest.mark.parametrize("width", [1, 3, CHANNELS])
def test_the_crossbar_gets_what_the_principal_components_leave(document, images, width: int) -> None:
    rows = images.transpose(0, 2, 3, 1).reshape(-1, CHANNELS).astype(np.float64)
    values = np.linalg.svd(rows, compute_uv=False)
    site = _site(document)
    known = inputs.look(document, make_device("lognormal", sigma=0), {"x": images})
    insertion = insert(document, site, "bypass", width, creator="test", seed=0, known=known)
    assert insertion.entered is not None
    document.graph.outputs.append(insertion.entered)
    proto = document.to_proto()
    left = Session(proto).run([images])[1]
    assert np.sum(left.astype(np.float64) ** 2) == pytest.approx(
        np.sum(values[width:] ** 2), rel=1e-3, abs=1e-3
    )


def test_the_error_of_a_chip_is_that_of_what_is_left(document, images) -> None:
    """Log-normal variation: the variance of y is Var(f) sum w^2 x^2, x being what is left."""
    site, sigma, chips = _site(document), 0.3, 400
    weight = site.weight.values(document.opset).astype(np.float64)
    known = inputs.look(document, make_device("lognormal", sigma=sigma), {"x": images})
    assert known.factor == pytest.approx(np.exp(sigma**2 / 2))
    insertion = insert(document, site, "bypass", 2, creator="test", seed=0, known=known)
    image, chip_model = images[:1], mapped(document, make_device("lognormal", sigma=sigma), 0)
    assert insertion.entered is not None
    tensors = chip_model.tensors()
    chip_model.graph.outputs[:] = [tensors["h"], tensors[insertion.entered.name]]
    session = Session(chip_model.to_proto())
    _, left = session.run([image])
    position = np.s_[0, :, 2:5, 2:5]  # what the kernel sees at (3, 3)
    spread = (np.exp(sigma**2) - 1) * np.exp(sigma**2)
    expected = spread * np.einsum("oijk,ijk->o", weight**2, left[position].astype(np.float64) ** 2)
    found = np.stack([session.run([image], chip=chip)[0][0, :, 3, 3] for chip in range(chips)])
    # the variance of a sample variance of near-normal values is 2 / (n - 1); five deviations, five channels
    np.testing.assert_allclose(found.var(axis=0, ddof=1), expected, rtol=6 * np.sqrt(2 / chips))
    whole = spread * np.einsum("oijk,ijk->o", weight**2, image[position].astype(np.float64) ** 2)
    assert np.all(expected < 0.6 * whole)
    # on average the chip multiplies by the factor, what is left and what goes around it alike
    mean = known.factor * np.einsum("oijk,ijk->o", weight, image[position].astype(np.float64))
    assert np.all(np.abs(found.mean(axis=0) - mean) < 5 * np.sqrt(expected / chips) + 1e-4)


def test_where_nothing_is_known_the_first_channels_go_around(document, images) -> None:
    before = Session(document.to_proto()).run([images])[0]
    site = _site(document)
    insertion = insert(document, site, "bypass", 2, creator="test", seed=0, known=Known())
    document.graph.outputs.append(insertion.entered)
    after, left = Session(document.to_proto()).run([images])
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert not left[:, :2].any()
    assert np.array_equal(left[:, 2:], images[:, 2:])


def test_what_overflows_on_chips_has_no_directions(document) -> None:
    endless = np.full((4, CHANNELS, 7, 7), np.inf, np.float32)
    assert not inputs.look(document, make_device("lognormal", sigma=0.5), {"x": endless}).directions


def test_groups_have_no_bypass(single) -> None:
    weight = np.ones((4, 1, 3, 3), np.float32)
    document = Document.from_proto(single("Conv", (1, 4, 8, 8), weight, group=4))
    with pytest.raises(PassPreconditionError, match="without groups"):
        InsertCompensation(node="site", kind="bypass")(document)
