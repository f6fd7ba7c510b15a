"""Models with converters and read noise: evaluated as they are mapped, whatever the batches."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cnpass.data import Split
from cnpass.document import Document
from cnpass.evaluation import MonteCarlo
from cnpass.evaluation.feeding import Feed, first_outputs
from cnpass.passes import Pipeline, analog
from cnpass.passes.calibrate_ranges import calibrate
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.periphery import PERIPHERY
from cnpass.runtime.session import Session


@pytest.fixture
def mapped(document: Document, samples: np.ndarray) -> Document:
    options = "sigma=0.3,tile-rows=16,dac-bits=6,adc-bits=6,read-noise=0.0625"
    Pipeline.parse(f"map-crossbar{{{options}}}").run(document)
    calibrate(document, {"x": samples})
    return document


def periphery(document: Document) -> list[dict]:
    return [
        {name: value for name, value in node.attrs.items() if name in PERIPHERY}
        for node in analog.analog_nodes(document)
    ]


def test_batches_do_not_matter(mapped: Document, samples: np.ndarray) -> None:
    session = Session(mapped.to_proto())
    feeds = [Feed(1), Feed(7), Feed(16, padded=True), Feed(90)]
    outputs = [np.concatenate(list(first_outputs(session, {"x": samples}, feed, chip=3))) for feed in feeds]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


@pytest.mark.parametrize("device", [None, LogNormal(sigma=0.6)])
def test_periphery_is_kept(mapped: Document, split: Split, device: LogNormal | None) -> None:
    """With the model's own device, and with another one in its place."""
    with MonteCarlo(mapped, split, workers=1) as run:
        target = run.prepare(mapped, device, 5)
        assert periphery(target.mapped) == periphery(mapped)
        assert all(around["output_range"] > 0 for around in periphery(mapped))
        session = Session(target.mapped.to_proto())
        expected = float(np.mean(session.run(split.x, chip=4)[0].argmax(1) == split.y))
        assert run.values(target, [4]) == [expected]


def test_fixed_batch_and_free_batch_agree(build, split: Split) -> None:
    """A model that fixes its batch numbers the samples just as one that does not."""
    values = []
    for batch in ("N", 1, 4):
        document = Document.from_proto(onnx.ModelProto.FromString(build(batch).SerializeToString()))
        Pipeline.parse("map-crossbar{sigma=0.3,adc-bits=5,read-noise=0.1}").run(document)
        calibrate(document, split.inputs)
        with MonteCarlo(document, split, workers=1) as run:
            values.append(run.values(run.prepare(document), [0, 1]))
    assert values[0] == values[1] == values[2]
