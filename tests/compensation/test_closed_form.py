"""Fits written into documents against computations by hand, and what they may and may not look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.compensation import activations, closed_form
from cnpass.compensation.closed_form import FIT_CHIPS_START, fit
from cnpass.compensation.kinds import Kind
from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.evaluation import VALIDATION_CHIPS_START
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import analog_conv, program_weight
from cnpass.runtime.session import Session
from cnpass.training.lift import unsupported

DEVICE = LogNormal(sigma=0.4)
EXACT = LogNormal(sigma=0.0)


@dataclass(frozen=True)
class Choice:
    node: str
    kind: Kind = "linear"
    ratio: float = 1.0


NODES = [
    helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="conv", pads=[1] * 4, strides=[2, 2]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("Flatten", ["r"], ["f"]),
    helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="gemm"),
]


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    shapes = {"w1": (5, 3, 3, 3), "b1": (5,), "w2": (45, 4), "b2": (4,)}
    return {k: (random.standard_normal(s) / 2).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def network(build, weights):
    """A convolution on [n, 3, 6, 6] and a product."""
    return lambda nodes=NODES, n="n": Document.from_proto(build(nodes, weights, inputs={"x": [n, 3, 6, 6]}))


@pytest.fixture(scope="module")
def split():
    return samples(np.random.default_rng(1).standard_normal((60, 3, 6, 6)) + 0.3)


def samples(x) -> Split:
    return Split({"x": x.astype(np.float32)}, np.zeros(len(x), np.int64))


def constants(document: Document) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in document.to_proto().graph.initializer}


def written(document: Document) -> bytes:
    return document.to_proto().SerializeToString(deterministic=True)


def observed(weights, split, chips, device=DEVICE, seed=0):
    """Rows of the pooled input, the output on chips, and the clean output of the convolution, by hand."""
    x = split.x.astype(np.float64)
    form = {"pads": [1] * 4, "strides": [2, 2]}

    def rows(values):
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])

    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    inside = np.pad(np.ones_like(x), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = [
        sum(a[:, :, i : i + 6 : 2, j : j + 6 : 2] for i in range(3) for j in range(3))
        for a in (padded, inside)
    ]
    pooled, clean = rows(windows[0] / windows[1]), None
    seen, wanted = [], []
    for chip in (-1, *chips):
        w = program_weight(weights["w1"], device, seed=seed, stream=0, chip=chip)
        y = rows(analog_conv(split.x, w, weights["b1"], device=None, chip=chip, **form)).astype(np.float64)
        if chip == -1:
            clean = y
            continue
        seen.append(np.hstack([pooled, y]))
        wanted.append(clean - y)
    return np.vstack(seen), np.vstack(wanted)


def regression(z, t, ridge, rank):
    """Coefficients and offset, by least squares on the data extended by the penalty, and an SVD."""
    z0, t0 = z - z.mean(axis=0), t - t.mean(axis=0)
    root = np.sqrt(ridge * np.mean(np.sum(z0**2, axis=0)))
    z1, t1 = np.vstack([z0, root * np.eye(z.shape[1])]), np.vstack([t0, np.zeros((z.shape[1], t.shape[1]))])
    full, *_ = np.linalg.lstsq(z1, t1, rcond=None)
    right = np.linalg.svd(z1 @ full)[2][:rank]
    found = full @ right.T @ right
    return found, t.mean(axis=0) - z.mean(axis=0) @ found


@pytest.mark.parametrize(("ratio", "rank"), [(1.0, 5), (0.4, 2)])
def test_writes_the_regression_of_what_chips_do(network, weights, split, ratio, rank):
    document = fit(
        network(), [Choice("conv", ratio=ratio)], split, DEVICE, chips=3, samples=64, ridge=0.01
    ).document
    z, t = observed(weights, split, range(FIT_CHIPS_START, FIT_CHIPS_START + 3))
    expected, offset = regression(z, t, 0.01, rank)
    held = constants(document)
    generator, compensator = (held[f"c.{name}.weight"][..., 0, 0] for name in ("generator", "compensator"))
    assert generator.shape == (rank, 8)
    np.testing.assert_allclose((compensator @ generator).T, expected, atol=2e-5)
    total = compensator @ held["c.generator.bias"] + held["c.compensator.bias"]
    np.testing.assert_allclose(total, offset, atol=2e-5)


def test_tells_how_much_of_the_error_is_left(network, weights, split):
    (found,) = fit(
        network(), [Choice("conv", ratio=0.4)], split, DEVICE, chips=3, samples=64, ridge=0.01
    ).nodes
    z, t = observed(weights, split, range(FIT_CHIPS_START, FIT_CHIPS_START + 3))
    clean = t + z[:, 3:]
    variance = np.sum((clean - clean.mean(axis=0)) ** 2)
    coefficients, offset = regression(z, t, 0.01, 2)
    assert (found.node, found.kind, found.width) == ("conv", "linear", 2)
    assert found.before == pytest.approx(np.sum(t**2) / variance, rel=1e-5)
    assert found.after == pytest.approx(np.sum((t - z @ coefficients - offset) ** 2) / variance, rel=1e-5)


def test_the_affine_kind_gets_a_factor_and_an_offset_per_channel(network, weights, split):
    document = fit(
        network(), [Choice("conv", "affine")], split, DEVICE, chips=3, samples=64, ridge=1e-9
    ).document
    z, t = observed(weights, split, range(FIT_CHIPS_START, FIT_CHIPS_START + 3))
    y, clean = z[:, 3:], z[:, 3:] + t
    slopes = np.array([np.polyfit(clean[:, i], y[:, i], 1)[0] for i in range(5)])
    offsets = clean.mean(axis=0) - y.mean(axis=0) / slopes
    held = constants(document)
    np.testing.assert_allclose(held["c.factor"].ravel(), 1 / slopes, atol=1e-5)
    np.testing.assert_allclose(held["c.offset"].ravel(), offsets, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "affine"])
def test_recovers_an_error_of_its_own_form_exactly_node_after_node(network, build, weights, split, kind):
    """The error of every node is a linear map of its output; the second fit must see the first one's work."""
    random = np.random.default_rng(2)
    factor = {k: np.diag(random.uniform(0.5, 2, n)) for k, n in (("conv", 5), ("gemm", 4))}
    if kind == "linear":
        factor = {k: v + random.uniform(-0.2, 0.2, v.shape) for k, v in factor.items()}
    other = {
        "w1": np.einsum("oi,i...->o...", factor["conv"], weights["w1"]).astype(np.float32),
        "b1": (factor["conv"] @ weights["b1"] + 0.5).astype(np.float32),
        "w2": (weights["w2"] @ factor["gemm"]).astype(np.float32),
        "b2": (weights["b2"] @ factor["gemm"] - 1).astype(np.float32),
    }
    target = Document.from_proto(build(NODES, other, inputs={"x": ["n", 3, 6, 6]}))
    choices = [Choice("gemm", kind), Choice("conv", kind)]
    found = fit(network(), choices, split, EXACT, chips=1, samples=64, ridge=1e-9, target=target)
    assert [node.node for node in found.nodes] == ["conv", "gemm"]
    assert all(node.before > 0.01 and node.after < 1e-6 for node in found.nodes)
    fresh = np.random.default_rng(3).standard_normal((20, 3, 6, 6)).astype(np.float32)
    (expected,), (got,) = (Session(d.to_proto()).run(fresh) for d in (target, found.document))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


def test_corrections_carry_over_to_new_chips_and_samples(network, split):
    both = [Choice("conv"), Choice("gemm")]
    document = network()
    fitted = fit(document, both, split, DEVICE, chips=8, ridge=0.03).document
    fresh = np.random.default_rng(4).standard_normal((100, 3, 6, 6)).astype(np.float32) + 0.3
    (clean,) = Session(document.to_proto()).run(fresh)

    def error(model):
        session = Session(activations.mapped(model, DEVICE, 0).to_proto())
        return np.mean([(session.run(fresh, chip=chip)[0] - clean) ** 2 for chip in range(40)])

    assert error(fitted) < 0.8 * error(document)


def test_a_narrow_fit_is_the_leading_block_of_a_wide_one(network, split):
    wide, narrow = (
        constants(fit(network(), [Choice("conv", ratio=ratio)], split, DEVICE, chips=2).document)
        for ratio in (1.0, 0.4)
    )
    for name in ("c.generator.weight", "c.generator.bias"):
        np.testing.assert_array_equal(narrow[name], wide[name][:2])
    np.testing.assert_array_equal(narrow["c.compensator.weight"], wide["c.compensator.weight"][:, :2])
    np.testing.assert_array_equal(narrow["c.compensator.bias"], wide["c.compensator.bias"])


def test_filters_beyond_full_rank_have_no_effect(network, split):
    full, more = (
        fit(network(), [Choice("conv", ratio=ratio)], split, DEVICE, chips=2).document for ratio in (1.0, 2.0)
    )
    held = constants(more)
    assert not held["c.compensator.weight"][:, 5:].any()
    assert held["c.generator.weight"][5:].all()  # so that training could put them to use
    (a,), (b,) = (Session(d.to_proto()).run(split.x) for d in (full, more))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_same_input_same_bytes_and_the_document_stays(network, split):
    document = network()
    before = written(document)
    choices = [Choice("conv", ratio=0.5), Choice("gemm", "affine")]
    first, second = (fit(document, choices, split, DEVICE, chips=2, samples=20) for _ in range(2))
    assert written(first.document) == written(second.document)
    assert first.nodes == second.nodes
    assert written(document) == before
    other = fit(document, choices, split, DEVICE, chips=2, samples=20, seed=1)
    assert written(other.document) != written(first.document)


def test_large_maps_are_subsampled_alike_on_all_chips(build, weights):
    """Without variation the clean rows equal those of a chip, unless other positions were picked."""
    document = Document.from_proto(build(NODES[:1], weights, inputs={"x": ["n", 3, 40, 40]}, outputs=("c",)))
    x = np.random.default_rng(5).standard_normal((70, 3, 40, 40))
    found = fit(document, [Choice("conv")], samples(x), EXACT, chips=2)
    assert found.nodes[0].before < 1e-12
    seen = fit(document, [Choice("conv")], samples(x), DEVICE, chips=2).nodes[0]
    assert 0 < seen.after < seen.before


def test_looks_at_chips_of_its_own_and_never_at_labels(network, split, monkeypatch):
    seen = set()
    run = Session.run

    def spy(self, inputs, *, chip=-1, first_sample=0):
        seen.add(chip)
        return run(self, inputs, chip=chip, first_sample=first_sample)

    monkeypatch.setattr(Session, "run", spy)
    labelled = fit(network(), [Choice("conv")], split, DEVICE, chips=3)
    assert seen == {-1, *range(FIT_CHIPS_START, FIT_CHIPS_START + 3)}
    assert FIT_CHIPS_START > VALIDATION_CHIPS_START + 100_000
    assert written(
        fit(network(), [Choice("conv")], replace(split, y=None), DEVICE, chips=3).document
    ) == written(labelled.document)


def test_every_chip_sees_as_many_samples_as_asked_and_others(network, split, monkeypatch):
    fed = {}
    run = Session.run

    def spy(self, inputs, *, chip=-1, first_sample=0):
        fed.setdefault(chip, []).extend(array.tobytes() for array in inputs["x"])
        return run(self, inputs, chip=chip, first_sample=first_sample)

    monkeypatch.setattr(Session, "run", spy)
    fit(network(), [Choice("conv")], split, DEVICE, chips=3, samples=10)
    picks = [set(fed[chip]) for chip in range(FIT_CHIPS_START, FIT_CHIPS_START + 3)]
    assert [len(fed[chip]) for chip in range(FIT_CHIPS_START, FIT_CHIPS_START + 3)] == [10, 10, 10]
    assert all(len(pick) == 10 for pick in picks)
    assert len(picks[0] | picks[1] | picks[2]) > 20


def test_a_fixed_batch_gives_what_a_free_one_gives(network, split):
    choices = [Choice("conv"), Choice("gemm")]
    free, fixed = (fit(network(n=n), choices, split, DEVICE, chips=2).document for n in ("n", 1))
    assert fixed.graph.inputs[0].shape[0] == 1
    for name, values in constants(free).items():
        np.testing.assert_allclose(constants(fixed)[name], values, atol=1e-4, err_msg=name)


def test_serves_models_whose_operators_cannot_be_trained(network, split):
    nodes = [
        *NODES[:3],
        helper.make_node("Cast", ["f"], ["i"], to=TensorProto.INT32),
        helper.make_node("BitwiseNot", ["i"], ["b"]),
        helper.make_node("Cast", ["b"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name="gemm"),
    ]
    document = network(nodes)
    assert unsupported(document)
    assert fit(document, [Choice("gemm")], split, DEVICE, chips=4).nodes[0].after < 1


def test_products_of_sequences(build, weights):
    nodes = [helper.make_node("MatMul", ["x", "w2"], ["y"], name="m")]
    document = Document.from_proto(build(nodes, weights, inputs={"x": ["n", 7, 45]}))
    x = np.random.default_rng(6).standard_normal((30, 7, 45))
    found = fit(document, [Choice("m", ratio=0.5)], samples(x), DEVICE, chips=3).nodes[0]
    assert found.width == 2
    assert found.after < found.before


@pytest.mark.parametrize(
    ("choices", "options", "error", "text"),
    [
        ([Choice("conv", "residual")], {}, UsageError, "residual kind has no closed form"),
        ([Choice("conv"), Choice("conv", "affine")], {}, UsageError, "'conv' is to be compensated twice"),
        ([Choice("nothing")], {}, ModelError, "'nothing' cannot be compensated: it is no analog node"),
        ([Choice("conv")], {"ridge": 0.0}, UsageError, "ridge is 0.0"),
        ([Choice("conv")], {"ridge": float("nan")}, UsageError, "ridge is nan"),
        ([Choice("conv")], {"chips": 0}, UsageError, "chips is 0"),
        ([Choice("conv")], {"samples": 0}, UsageError, "samples is 0"),
    ],
)
def test_refuses_what_it_cannot_do(network, split, choices, options, error, text):
    with pytest.raises(error, match=text):
        fit(network(), choices, split, DEVICE, **options)


def test_refuses_unusable_samples(network, split):
    with pytest.raises(DataError, match="no samples"):
        fit(network(), [Choice("conv")], split.take(slice(0)), DEVICE)
    with pytest.raises(DataError, match="node 'conv' gives values on chip 2000000 that are not finite"):
        fit(network(), [Choice("conv")], samples(np.full((5, 3, 6, 6), np.inf)), DEVICE)


def test_refuses_nodes_too_large_for_memory(network, split, monkeypatch):
    monkeypatch.setattr(closed_form, "MAX_FEATURES", 40)
    with pytest.raises(UsageError, match="'gemm' has 45 inputs and 4 outputs"):
        fit(network(), [Choice("gemm")], split, DEVICE)


def test_refuses_a_target_of_another_graph(network, build, split):
    other = Document.from_proto(
        build([helper.make_node("Flatten", ["x"], ["y"])], inputs={"x": ["n", 3, 6, 6]})
    )
    with pytest.raises(ModelError, match="has no tensor 'c'"):
        fit(network(), [Choice("conv")], split, DEVICE, target=other)
