"""Tiles, converters and read noise from the options of map-crossbar to calibrated ranges and back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from cnpass.data.dataset import shuffled
from cnpass.document import Document
from cnpass.errors import ModelError, UsageError
from cnpass.passes import Pipeline, analog
from cnpass.passes.base import PassError, PassPreconditionError
from cnpass.passes.calibrate_ranges import calibrate
from cnpass.passes.pipeline import Verifying
from cnpass.runtime import ops
from cnpass.runtime.library import WITHOUT_LIBRARY, has_library
from cnpass.runtime.reference import analog_conv
from cnpass.runtime.session import Session

EVERYTHING = "map-crossbar{sigma=0.2,tile-rows=8,tile-cols=4,dac-bits=8,adc-bits=9,read-noise=0.01}"


@pytest.fixture
def model(build, weight):
    """A convolution, a product over its maps folded into rows, and one of the whole sample."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "rows"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["m"], name="rows"),
        helper.make_node("Reshape", ["m", "back"], ["s"]),
        helper.make_node("Gemm", ["s", "u"], ["y"], name="whole", transB=1),
    ]
    weights = {"w": weight(5, 3, 3, 3), "b": weight(5), "v": weight(16, 6), "u": weight(7, 30)}
    shapes = {"rows": np.array([-1, 16]), "back": np.array([-1, 30])}
    return build(nodes, weights | shapes, inputs={"x": ["n", 3, 4, 4]})


@pytest.fixture
def samples(rng):
    return rng.standard_normal((40, 3, 4, 4)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mapped(model, pipeline=EVERYTHING) -> Document:
    document = Document.from_proto(model)
    Pipeline.parse(pipeline).run(document, [Verifying()])
    return document


def attributes(document: Document, name: str) -> dict:
    return {node.name: node.attrs.get(name) for node in analog.analog_nodes(document)}


def test_options_become_attributes(model):
    document = mapped(model)
    for name, value in (("tile_rows", 8), ("tile_cols", 4), ("dac_bits", 8), ("adc_bits", 9)):
        assert set(attributes(document, name).values()) == {value}
    assert attributes(document, "sample_rows") == {"conv": None, "rows": 5, "whole": 1}
    assert document.metadata[ops.META_FIRST_SAMPLE_INPUT] == "first_sample"
    assert {node.inputs[-1].name for node in analog.analog_nodes(document)} == {"first_sample"}


def test_no_option_no_attribute(model):
    document = mapped(model, "map-crossbar")
    for node in analog.analog_nodes(document):
        assert not set(node.attrs) & {"tile_rows", "adc_bits", "output_range", "sample_rows"}
    assert ops.META_FIRST_SAMPLE_INPUT not in document.metadata


def test_a_new_device_keeps_the_periphery(model, samples):
    """As `cnpass evaluate` does with a model that is mapped already."""
    document = mapped(model)
    calibrate(document, {"x": samples})
    before = [dict(node.attrs) for node in analog.analog_nodes(document)]
    result = Pipeline.parse("map-crossbar{sigma=0.4}").run(document)
    after = [dict(node.attrs) for node in analog.analog_nodes(document)]
    assert result.modified
    for one, other in zip(before, after, strict=True):
        assert one | {"sigma": 0.4} == other
    Pipeline.parse("map-crossbar{sigma=0.4,read-noise=0,tile-rows=16}").run(document)
    assert set(attributes(document, "output_range").values()) == {0.0}
    assert all(value > 0 for value in attributes(document, "input_range").values())
    assert "first_sample" not in document.tensors()
    assert ops.META_FIRST_SAMPLE_INPUT not in document.metadata


def test_a_model_without_ranges_says_what_to_do(model):
    document = Document.from_proto(model)
    notes = Pipeline.parse(EVERYTHING).run(document).notes
    assert any("3 nodes lack the range of a converter; calibrate-ranges" in note for note in notes)
    if has_library():
        with pytest.raises(
            ModelError, match=r'AnalogConv node "conv": .*"input_range" is 0.*calibrate-ranges'
        ):
            Session(document.to_proto())


def test_lowering_brings_the_source_back(model, samples):
    document = mapped(model)
    calibrate(document, {"x": samples})
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert document.to_proto().SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def test_largest_magnitudes(model, samples):
    """With percentile 100 the input's range is its maximum, and no tile's sum is above the output's."""
    document = mapped(model)
    calibrate(document, {"x": samples}, percentile=100)
    assert attributes(document, "input_range")["conv"] == np.abs(samples).max()
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w"))
    largest = 0.0
    for first in range(0, 27, 8):
        part = np.zeros((5, 27), np.float32)
        part[:, first : first + 8] = weight.reshape(5, 27)[:, first : first + 8]
        sums = analog_conv(samples, part.reshape(weight.shape), device=None, chip=0, pads=[1] * 4)
        largest = max(largest, np.abs(sums).max())
    np.testing.assert_allclose(attributes(document, "output_range")["conv"], largest, rtol=1e-5)


@pytest.mark.parametrize("percentile", [90.0, 99.9])
def test_percentiles(model, samples, percentile):
    document = mapped(model)
    calibrate(document, {"x": samples}, percentile=percentile)
    exact = np.percentile(np.abs(samples), percentile, method="inverted_cdf")
    assert exact <= attributes(document, "input_range")["conv"] <= exact * (1 + 1 / 128)


def test_chips_widen_the_range(model, samples):
    ideal, real = mapped(model), mapped(model)
    calibrate(ideal, {"x": samples}, percentile=100)
    calibrate(real, {"x": samples}, percentile=100, chips=range(-1, 4))
    for name, value in attributes(ideal, "output_range").items():
        assert attributes(real, "output_range")[name] >= value


@pytest.mark.parametrize("native", [True, False])
def test_converters_cost_little_accuracy(model, samples, monkeypatch, native):
    """With many bits the model computes what it did without converters; bodies are kept up to date."""
    if native and not has_library():
        pytest.skip("the native library is not built")
    monkeypatch.setenv(WITHOUT_LIBRARY, "0" if native else "1")
    document = mapped(model, "map-crossbar{tile-rows=8,dac-bits=14,adc-bits=16}")
    calibrate(document, {"x": samples}, percentile=100)
    y = Session(document.to_proto()).run(samples)[0]
    exact = Session(model).run(samples)[0]
    assert 0 < np.abs(y - exact).max() < 2e-3 * np.abs(exact).max()


def test_the_split_into_batches_does_not_matter(model, samples):
    document = mapped(model)
    calibrate(document, {"x": samples})
    session = Session(document.to_proto())
    whole = session.run(samples, chip=2)[0]
    parts = [session.run(samples[i : i + 7], chip=2, first_sample=i)[0] for i in range(0, 40, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(session.run(samples[7:14], chip=2)[0], whole[7:14])


def test_pass_reads_data(model, samples, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, x_train=samples * 4, x_test=samples)
    document = mapped(model)
    options = f'data="{data}",samples=20,percentile=100,scale=1/2'
    result = Pipeline.parse(f"calibrate-ranges{{{options}}}").run(document, [Verifying()])
    assert any("ranges from 20 samples" in note for note in result.notes)
    assert attributes(document, "input_range")["conv"] == np.abs(samples[shuffled(40)[:20]] * 2).max()
    assert not Pipeline.parse(f"calibrate-ranges{{{options}}}").run(document, [Verifying()]).modified


def test_misuse(model):
    with pytest.raises(PassPreconditionError, match="no analog node; put map-crossbar before it"):
        Pipeline.parse("calibrate-ranges").run(Document.from_proto(model))
    with pytest.raises(UsageError, match="'calibrate-ranges', option 'percentile'"):
        Pipeline.parse("calibrate-ranges{percentile=40}")
    with pytest.raises(UsageError, match="'map-crossbar', option 'adc-bits'"):
        Pipeline.parse("map-crossbar{adc-bits=40}")
    with pytest.raises(UsageError, match="pass 'calibrate-ranges', option 'std': "):
        Pipeline.parse("calibrate-ranges{std=0}").run(mapped(model))
    broken = {"x": np.full((2, 3, 4, 4), np.nan, np.float32)}
    with pytest.raises(PassError, match="node 'conv' sees no finite number"):
        calibrate(mapped(model), broken)
