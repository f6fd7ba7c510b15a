"""Sessions: sources, inputs, the chip argument, failures in one line."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.errors import DataError, MissingDependencyError, ModelError, UsageError
from cnpass.runtime import Session, function_bodies, has_library
from cnpass.runtime.library import WITHOUT_LIBRARY, get_library_path
from cnpass.runtime.ops import CHIP_INPUT, META_CHIP_INPUT, META_FIRST_SAMPLE_INPUT


@pytest.fixture
def weight(rng):
    return rng.standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def plain(plain_model, weight):
    return plain_model("MatMul", weight)


@pytest.fixture
def selecting():
    """A model that returns the chip and the first sample it was given."""
    names = [CHIP_INPUT, "first"]
    nodes = [helper.make_node("Add", ["x", name], [f"{name}-out"]) for name in names]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ["x", *names]]
    outputs = [helper.make_tensor_value_info(f"{name}-out", TensorProto.INT64, []) for name in names]
    initializers = [numpy_helper.from_array(np.array(0), name) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {META_CHIP_INPUT: CHIP_INPUT, META_FIRST_SAMPLE_INPUT: "first"})
    return model


def test_sequences_go_as_they_are(plain):
    nodes = [helper.make_node("SequenceAt", ["s", "place"], ["x"]), *plain.graph.node]
    values = [numpy_helper.from_array(np.array(1), "place"), *plain.graph.initializer]
    inputs = [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, plain.graph.output, values)
    model = helper.make_model(graph, opset_imports=plain.opset_import, ir_version=8)
    first, second = np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(
        Session(model).run({"s": [first, second]})[0], Session(plain).run(second)[0]
    )


def one_line(error):
    return "\n" not in str(error.value)


def test_sources(plain, weight, tmp_path):
    """A path with external data beside it, bytes, and a ModelProto give the same."""
    x = np.ones((2, 3), np.float32)
    path = tmp_path / "model.onnx"
    external = onnx.ModelProto.FromString(plain.SerializeToString())
    data = external.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(data.raw_data)
    data.ClearField("raw_data")
    data.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(weight.nbytes))):
        data.external_data.add(key=key, value=value)
    path.write_bytes(external.SerializeToString())
    for source in (plain, plain.SerializeToString(), path, str(path)):
        session = Session(source)
        assert (session.inputs, session.outputs) == (("x",), ("y",))
        np.testing.assert_allclose(session.run(x)[0], x @ weight, rtol=1e-6)


def test_inputs_in_every_form(plain, weight):
    x = np.ones((2, 3))
    session = Session(plain, threads=2)
    for inputs in (x, [x], (x,), {"x": x}, {"x": x.astype(np.float16)}, {"x": x.astype(np.uint8)}):
        np.testing.assert_allclose(session.run(inputs)[0], x @ weight, rtol=1e-6)


def test_selectors_are_fed_and_hidden(selecting):
    session = Session(selecting)
    assert session.inputs == ("x",)
    zero = np.array(0)
    assert [int(y) for y in session.run(zero)] == [-1, 0]
    assert [int(y) for y in session.run(zero, chip=2**32 - 2, first_sample=12)] == [2**32 - 2, 12]


@pytest.mark.parametrize("chip", [-2, 2**32 - 1])
def test_chip_out_of_range(selecting, chip):
    with pytest.raises(UsageError, match="it must be a whole number from"):
        Session(selecting).run(np.array(0), chip=chip)


def test_plain_model_has_no_chips(plain):
    with pytest.raises(UsageError, match="no analog nodes"):
        Session(plain).run(np.ones((2, 3)), chip=0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"takes 1 input\(s\), 0 are given"),
        ({"z": np.ones(3)}, r"takes inputs \['x'\], given are \['z'\]"),
        (np.array(["a"]), "is float32, the data are <U1"),
        (np.ones((2, 3), complex), "is float32, the data are complex128"),
    ],
)
def test_inputs_that_do_not_fit(plain, inputs, message):
    with pytest.raises(DataError, match=message):
        Session(plain).run(inputs)


def test_inputs_of_a_type_that_onnx_runtime_takes_no_arrays_of(build):
    model = build([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(ModelError, match="is bfloat16, of which ONNX Runtime takes no arrays; let the model"):
        Session(model).run(np.ones((2, 4), ml_dtypes.bfloat16))


def test_declared_shape_that_does_not_fit(plain):
    plain.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]))
    with pytest.raises(DataError, match="do not fit") as error:
        Session(plain).run(np.ones((2, 4)))
    assert one_line(error)


def test_failing_node_is_named(plain):
    with pytest.raises(ModelError, match="'plain'") as error:
        Session(plain).run(np.ones((2, 5)))
    assert one_line(error)


def test_failures_stay_silent(plain, capfd):
    with pytest.raises(ModelError):
        Session(plain).run(np.ones((2, 5)))
    with pytest.raises(ModelError):
        Session(b"garbage")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"garbage", "refuses the model"),
        ("nowhere.onnx", "nowhere.onnx is not a file"),
        (Path("nowhere.onnx"), "nowhere.onnx is not a file"),
    ],
)
def test_models_that_cannot_be_loaded(model, message):
    with pytest.raises(ModelError, match=message) as error:
        Session(model)
    assert one_line(error)


def test_negative_threads(plain):
    with pytest.raises(UsageError, match="threads is -1"):
        Session(plain, threads=-1)


def test_without_library_or_bodies(analog_model, weight, monkeypatch):
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    assert not has_library()
    with pytest.raises(MissingDependencyError, match="CNPASS_NO_NATIVE=1"):
        get_library_path()
    with pytest.raises(MissingDependencyError, match="without function bodies") as error:
        Session(analog_model((weight, None, {})))
    assert one_line(error)


def test_library_of_another_kind(plain, monkeypatch, tmp_path):
    broken = tmp_path / "libcnpass_ort.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr("cnpass.runtime.session.has_library", lambda: True)
    monkeypatch.setattr("cnpass.runtime.session.get_library_path", lambda: broken)
    with pytest.raises(MissingDependencyError, match=r"cannot use libcnpass_ort\.so") as error:
        Session(plain)
    assert one_line(error)


@pytest.mark.parametrize("native", [True, False])
def test_threads_share_a_session(analog_model, rng, monkeypatch, native):
    """Four threads, each with a chip of its own, get what each chip gives alone."""
    if native and not has_library():
        pytest.skip("the native library is not built")
    monkeypatch.setenv(WITHOUT_LIBRARY, "0" if native else "1")
    x, w = rng.standard_normal((2, 70)).astype(np.float32), rng.standard_normal((70, 9)).astype(np.float32)
    model = analog_model((w, None, {}))
    model.functions.extend(function_bodies(model.graph.node, 18))
    session = Session(model)
    alone = [session.run(x, chip=chip)[0] for chip in range(4)]

    def same(chip: int) -> bool:
        return all(np.array_equal(session.run(x, chip=chip)[0], alone[chip]) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(4)))


def test_failing_native_node_is_named(analog_model, weight):
    if not has_library():
        pytest.skip("the native library is not built")
    with pytest.raises(ModelError, match="analog0") as error:
        Session(analog_model((weight, None, {}))).run(np.ones((2, 5)))
    assert one_line(error)
