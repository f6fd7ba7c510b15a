"""The lift: what becomes a parameter, what runs, what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.mapping import plan
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.runtime.devices import LogNormal
from cnpass.training import lipschitz
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples
from cnpass.training.idle import find_idle
from cnpass.training.lift import Lifted, lift, unsupported

F = TensorProto.FLOAT
ZOO = [
    "mnist_cntk8",
    "mnist_verivital_maxpool",
    "mnist_verivital_avgpool",
    "cifar10_marabou_medium",
    "cifar10_resnet2b",
    "cifar10_vit_ibp_3_3_8",
    "espcn_float_subpixel",
    "ezkl_fr_age",
    "ezkl_multihead_attention",
    "fastestdet",
    "mb_self_attention_small_sim",
    "nn4sys_mscn_128d_dual",
    "trt_residual_block",
]


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ZOO)
def test_third_party_models_give_the_outputs_of_onnx_runtime(zoo, ort, name: str) -> None:
    path, _ = zoo(name)
    model = onnx.load(path)
    module = Lifted(model)
    initial = {i.name for i in model.graph.initializer}
    inputs = [
        _random(tuple(max(d.dim_value, 1) for d in i.type.tensor_type.shape.dim), k)
        for k, i in enumerate(i for i in model.graph.input if i.name not in initial)
    ]
    want = ort(model, inputs)
    got = module(*[torch.from_numpy(x) for x in inputs])
    for g, w in zip(got, want, strict=True):
        assert np.abs(g.detach().numpy() - w).max() <= 1e-5 * max(np.abs(w).max(), 1e-2)
    sum(g.sum() for g in got).backward()
    assert all(weight.grad is not None for weight in module.weights.values())
    document = Document.load(path)
    assert {n.key for n in plan(document).analog} <= set(module.weights)


def test_gradients_match_finite_differences(convnet) -> None:
    module = Lifted(convnet).double()
    module._input_types["x"] = torch.float64
    x = torch.from_numpy(_random((3, 1, 8, 8))).double()
    weights = {k: w.detach().double() for k, w in module.weights.items()}
    key = "conv2.weight"
    variable = weights[key].clone().requires_grad_()
    module(x, weights=weights | {key: variable})[0].square().sum().backward()
    for index in [(0, 0, 0, 0), (3, 2, 1, 1), (7, 5, 2, 0)]:
        step = torch.zeros_like(variable)
        step[index] = 1e-6
        up, down = (
            module(x, weights=weights | {key: weights[key] + s})[0].square().sum() for s in (step, -step)
        )
        assert variable.grad[index].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-5)


def test_weights_that_lie_channels_last_train_as_others_do(convnet) -> None:
    """As they lie on CUDA; a CPU takes them, too."""
    document, x = Document(convnet), torch.from_numpy(_random((3, 1, 8, 8)))
    gradients = []
    for module, lie_so in ((lift(document), False), (lift(document).channels_last(), True)):
        crossbars = Crossbars.of(plan(document), LogNormal(sigma=0.5), module.weights)
        drawn = crossbars.draw(module.weights, torch.Generator().manual_seed(0))
        key = "conv2.weight"
        for held in (drawn, crossbars.chip(module.weights, 3, seed=0)):
            assert held[key].is_contiguous(memory_format=torch.channels_last) == lie_so
        penalty = torch.stack([lipschitz.penalty([m], 0.3) for _, m in module.matrices(crossbars.streams)])
        (module(x, weights=drawn)[0].square().sum() + penalty.sum()).backward()
        gradients.append({key: weight.grad for key, weight in module.weights.items()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5)


def test_nodes_in_any_order(make, ort) -> None:
    nodes = [
        helper.make_node("MatMul", ["h", "v"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
    ]
    weights = {"w": _random((4, 3)), "v": _random((3, 2))}
    model = make(nodes[::-1], {"x": (F, ["n", 4])}, ["y"], weights)
    expected = ort(model, [_random((2, 4))])[0]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    got = Lifted(model)(torch.from_numpy(_random((2, 4))))[0]
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-5)


def test_what_is_computed_of_a_trained_weight_follows_it(make, ort) -> None:
    """Weight normalisation: the norm is of the weight as it is now, and has a gradient."""
    nodes = [
        helper.make_node("ReduceL2", ["v", "axes"], ["norm"]),
        helper.make_node("Div", ["v", "norm"], ["unit"]),
        helper.make_node("Mul", ["unit", "g"], ["w"]),
        helper.make_node("Sin", ["phase"], ["shift"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Sub", ["h", "shift"], ["y"]),
    ]
    weights = {"v": _random((4, 3)), "g": _random((1, 3), 1), "phase": _random((3,), 2)}
    model = make(nodes, {"x": (F, ["n", 4])}, ["y"], weights | {"axes": np.int64([0])})
    module = Lifted(model)
    assert set(module.weights) == {"v", "g"}
    module(torch.ones(1, 4))[0].sum().backward()
    assert module.weights["v"].grad.abs().max() > 0
    trained = {"v": 2 * weights["v"] + 1, "g": weights["g"]}
    got = module(torch.ones(1, 4), weights={k: torch.from_numpy(w) for k, w in trained.items()})[0]
    for tensor in model.graph.initializer:
        if tensor.name in trained:
            tensor.CopyFrom(numpy_helper.from_array(trained[tensor.name], tensor.name))
    expected = ort(model, [np.ones((1, 4), np.float32)])[0]
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("read", [False, True])
def test_constants_of_types_that_torch_has_not_matter_where_read(make, read: bool) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if read:
        nodes.append(helper.make_node("Identity", ["names"], ["z"]))
    model = make(nodes, {"x": (F, ["n", 4])}, ["z" if read else "y"], {"w": _random((4, 3))})
    names = numpy_helper.from_array(np.array(["a", "b"], object), "names")
    model.graph.initializer.append(names)
    problems = ["initializer names (element type)"] if read else []
    assert unsupported(Document.from_proto(model)) == problems


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions_over_many_axes_have_no_rule(make, op: str) -> None:
    node = helper.make_node(op, ["x", "w"], ["y"], "c")
    x = _random((1, 1, 2, 2, 2, 2))
    module = Lifted(make([node], {"x": (F, x.shape)}, ["y"], {"w": x}))
    with pytest.raises(ModelError, match="node c: no PyTorch rule for convolutions over 4 axes"):
        module(torch.from_numpy(x))


def test_a_tied_weight_is_one_parameter_with_both_gradients(make, ort) -> None:
    w = _random((5, 5))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Identity", ["wt"], ["wi"]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "wi"], ["y"]),
    ]
    model = make(nodes, {"x": (F, [2, 5])}, ["y"], {"w": w})
    module = Lifted(model)
    x = _random((2, 5), 1)
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), ort(model, [x])[0], rtol=1e-5)
    assert list(module.weights) == ["w"]
    module(torch.from_numpy(x))[0].sum().backward()
    direct = torch.from_numpy(w).requires_grad_()
    (torch.tanh(torch.from_numpy(x) @ direct) @ direct.t()).sum().backward()
    torch.testing.assert_close(module.weights["w"].grad, direct.grad)
    assert [layer.key for layer in module.layers] == ["w", "w"]


def test_weights_can_be_replaced_by_key_without_touching_the_parameters(convnet) -> None:
    module = Lifted(convnet)
    x = torch.from_numpy(_random((2, 1, 8, 8)))
    before = {k: w.detach().clone() for k, w in module.weights.items()}
    doubled = module(x, weights={"fc.weight": 2 * module.weights["fc.weight"]})[0]
    torch.testing.assert_close(doubled, 2 * module(x)[0])  # the bias is zero
    for key, weight in module.weights.items():
        assert torch.equal(weight, before[key])
    with pytest.raises(KeyError, match="nothing"):
        module(x, weights={"nothing": x})


def test_scalars_stay_fixed_and_statistics_are_buffers(make) -> None:
    weights = {
        "w": _random((3, 2, 1, 1)),
        "scale": np.ones(3, np.float32),
        "bias": np.zeros(3, np.float32),
        "mean": np.zeros(3, np.float32),
        "var": np.ones(3, np.float32),
        "two": np.array([2.0], np.float32),
        "vector": np.ones((3, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"]),
        helper.make_node("Pow", ["n", "two"], ["p"]),
        helper.make_node("Mul", ["p", "vector"], ["y"]),
    ]
    module = Lifted(make(nodes, {"x": (F, [2, 2, 4, 4])}, ["y"], weights))
    assert set(module.weights) == {"w", "scale", "bias", "vector"}
    assert len(list(module.buffers())) == 3


def test_all_unknown_operators_are_listed_at_once() -> None:
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["a"]),
        helper.make_node("Frob", ["a"], ["b"], domain="com.example"),
        helper.make_node("MaxPool", ["b"], ["c", "i"], kernel_shape=[2]),
        helper.make_node("Det", ["i"], ["y"]),
        helper.make_node("Frob", ["y"], ["z"], domain="com.example"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F, [1, 1, 4])], [onnx.ValueInfoProto(name="z")]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    )
    expected = ["Det", "MaxPool with an Indices output", "StringNormalizer", "com.example::Frob"]
    assert unsupported(Document.from_proto(model)) == expected
    with pytest.raises(ModelError) as caught:
        Lifted(model)
    assert str(caught.value) == "no PyTorch rule for: " + ", ".join(expected)


def test_operators_that_the_first_output_does_not_need_are_left_out(make, ort) -> None:
    then = helper.make_graph(
        [helper.make_node("Det", ["s"], ["t"])], "then", [], [helper.make_tensor_value_info("t", F, None)]
    )
    other = helper.make_graph(
        [helper.make_node("ReduceMax", ["s"], ["o"], keepdims=0)],
        "else",
        [],
        [helper.make_tensor_value_info("o", F, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["y", "v"], ["s"]),
        helper.make_node("Det", ["s"], ["d"]),
        helper.make_node("Add", ["d", "shift"], ["z"]),
        helper.make_node("If", ["yes"], ["f"], then_branch=then, else_branch=other),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Add", ["d", "d"], ["unread"]),
    ]
    weights = {"w": _random((3, 3)), "v": _random((3, 3), 1), "shift": _random((2,), 2)}
    model = make(nodes, {"x": (F, [3, 3])}, ["y", "z", "f", "r"], weights | {"yes": np.array(True)})
    assert unsupported(Document.from_proto(model)) == []
    module = Lifted(model)
    assert module.output_names == ("y", "r")
    assert set(module.weights) == {"w"}
    assert module.unused_weights == ("shift", "v")
    x = _random((3, 3), 3)
    want = ort(model, [x])
    got = module(torch.from_numpy(x))
    np.testing.assert_allclose(got[0].detach().numpy(), want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1].detach().numpy(), want[3], rtol=1e-5)
    idle = find_idle(Forward(module), Samples((torch.from_numpy(x),)), 0)
    assert (idle.total, idle.apart) == (3, ("shift", "v"))
    model.graph.output.insert(0, model.graph.output[2])
    assert unsupported(Document.from_proto(model)) == ["Det"]


def test_a_node_that_does_not_fit_its_input_is_named(make) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    module = Lifted(make([node], {"x": (F, ["n", 4])}, ["y"], {"w": _random((4, 2))}))
    with pytest.raises(ModelError, match="node product"):
        module(torch.zeros(2, 3))


def _damaged(kind: str, make) -> onnx.ModelProto:
    """A model that ONNX Runtime would refuse."""
    node = helper.make_node("Softmax", ["x"], ["y"], "soft", axis=1)
    model = make([node], {"x": (F, ["n", 4])}, ["y"], {"w": _random((4,))})
    node = model.graph.node[0]
    if kind == "attribute":
        node.attribute[0].CopyFrom(helper.make_attribute("axis", [1, 1]))
    elif kind == "body":
        node.CopyFrom(helper.make_node("Loop", ["", "", "x"], ["y"], "soft"))
    elif kind == "input":
        node.input[0] = "nothing"
    elif kind == "output":
        node.output[0] = "z"
    elif kind == "more outputs":
        model.graph.node.insert(0, helper.make_node("Neg", ["w"], ["v", "u"], "soft"))
        node.CopyFrom(helper.make_node("Add", ["x", "u"], ["y"], "sum"))
    elif kind == "outputs":
        del model.graph.output[:]
    elif kind == "weight":
        model.graph.initializer[0].raw_data += b"more"
    elif kind == "call":
        versions = [helper.make_opsetid("", 18)]
        body = [helper.make_node("Relu", ["p"], ["q"])]
        model.functions.append(helper.make_function("local", "F", ["p"], ["q"], body, versions))
        model.opset_import.append(helper.make_opsetid("local", 1))
        node.CopyFrom(helper.make_node("F", ["x", "x", "x"], ["y"], domain="local"))
    return model


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("attribute", "node soft: its attributes are no Softmax's: "),
        ("body", "node soft: its attributes are no Loop's: "),
        ("input", "node soft reads 'nothing', which nothing writes"),
        ("output", "the graph's list of outputs reads 'y', which nothing writes"),
        ("more outputs", "node sum reads 'u', which nothing writes"),
        ("outputs", "the model has no outputs"),
        ("weight", "values of tensor 'w' cannot be read: "),
        ("call", "local functions cannot be inlined: "),
    ],
)
def test_damaged_models_end_in_one_line(make, kind: str, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        Lifted(_damaged(kind, make))(torch.zeros(2, 4))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "held"), [(np.uint16, torch.int32), (ml_dtypes.bfloat16, torch.float32)])
def test_samples_are_held_like_weights_of_their_type(dtype, held) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    samples = Samples.of(Split({"x": array}), ["x"], torch.device("cpu"))
    assert samples.inputs[0].dtype == held
    np.testing.assert_array_equal(samples.inputs[0].numpy(), array.astype(np.float32))


def test_samples_of_types_that_torch_has_not() -> None:
    split = Split({"x": np.zeros((2, 3), ml_dtypes.float8_e4m3fn)})
    with pytest.raises(ModelError, match="torch has no type for float8_e4m3fn"):
        Samples.of(split, ["x"], torch.device("cpu"))


def test_branches_of_if_share_outer_weights_and_train(make, ort) -> None:
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", F, None)],
    )
    own = numpy_helper.from_array(_random((3, 3), 2), "own")
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "own"], ["m"]), helper.make_node("Add", ["m", "b"], ["o"])],
        "else",
        [],
        [helper.make_tensor_value_info("o", F, None)],
        [own],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    weights = {"w": _random((3, 3)), "b": _random((3,), 1)}
    model = make([node], {"x": (F, [2, 3]), "c": (TensorProto.BOOL, [])}, ["y"], weights)
    module = Lifted(model)
    assert set(module.weights) == {"w", "b", "own"}
    x = _random((2, 3), 3)
    for condition in (True, False):
        got = module(torch.from_numpy(x), torch.tensor(condition))[0]
        np.testing.assert_allclose(got.detach().numpy(), ort(model, [x, np.array(condition)])[0], rtol=1e-5)
    got.sum().backward()
    assert module.weights["own"].grad is not None


def test_a_loop_carries_states_and_stacks_outputs(make, ort) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["s2"]),
            helper.make_node("Identity", ["go"], ["go2"]),
            helper.make_node("Identity", ["s2"], ["row"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", F, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s2", F, [2, 3]),
            helper.make_tensor_value_info("row", F, [2, 3]),
        ],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["last", "rows"], body=body)
    model = make([node], {"x": (F, [2, 3])}, ["last", "rows"], {"w": _random((3, 3)), "n": np.array(4)})
    module = Lifted(model)
    x = _random((2, 3), 1)
    for got, want in zip(module(torch.from_numpy(x)), ort(model, [x]), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-4)
    assert list(module.weights) == ["w"]


def test_a_mapped_model_lifts_to_the_function_of_its_source(convnet) -> None:
    document = Document.from_proto(convnet)
    mapped = document.copy()
    MapCrossbar()(mapped)
    x = torch.from_numpy(_random((2, 1, 8, 8)))
    source, analog = lift(document), lift(mapped)
    assert analog.input_names == ("x",)
    assert set(analog.weights) == set(source.weights)
    torch.testing.assert_close(analog(x)[0], source(x)[0], rtol=1e-5, atol=1e-6)


def test_matrices_of_grouped_convolutions_and_products(make) -> None:
    weights = {"k": _random((6, 2, 3, 3)), "w": _random((96, 5), 1)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], group=2),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    module = Lifted(make(nodes, {"x": (F, [1, 4, 6, 6])}, ["y"], weights))
    found = {layer.key: matrix for layer, matrix in module.matrices(["k", "w"])}
    assert found["k"].shape == (2, 3, 18)
    assert found["w"].shape == (1, 5, 96)
    np.testing.assert_array_equal(found["k"][1, 0].detach().numpy(), weights["k"][3].reshape(-1))
    np.testing.assert_array_equal(found["w"][0].detach().numpy(), weights["w"].T)
