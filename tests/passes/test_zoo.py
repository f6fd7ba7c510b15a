"""Third-party models: mapped they compute the same, lowered they are the file that came in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cnpass.compensation.kinds import KINDS
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.centre_inputs import centre
from cnpass.passes.pipeline import Verifying
from cnpass.placement.sharing import insert_all
from cnpass.placement.space import Choice
from cnpass.runtime.session import Session

OPEN_DIMENSIONS = {"silero_vad_16k_op15": {"input": [1, 512], "state": [2, 1, 128], "sr": []}}
NOTHING_ANALOG = (
    "mnist_qonnx_tfc_2w2a",
    "olive_onnx_mnist",
    "trt_loop",
    "trt_nested_local_function",
    "trt_qdq_conv",
)


def feeds(document: Document, name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for tensor in document.graph.inputs:
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in tensor.shape]
        shape = OPEN_DIMENSIONS.get(name, {}).get(tensor.name, shape)
        values = np.full(shape, 16000) if tensor.name == "sr" else rng.uniform(0, 1, shape)
        found[tensor.name] = values.astype(tensor.dtype)
    return found


def test_every_model(zoo_model, tmp_path):
    path, entry = zoo_model
    name = entry["name"]
    document = Document.load(path)
    source = document.to_proto().SerializeToString(deterministic=True)
    mapping = Pipeline.parse("map-crossbar")
    if name in NOTHING_ANALOG:
        with pytest.raises(PassPreconditionError, match="no node can run on a crossbar"):
            mapping.run(document)
        return
    x = feeds(document, name)
    mapping.run(document, [Verifying()])
    if entry["ort_load"] == "ok":
        document.save(tmp_path / "mapped.onnx")
        before, after = Session(path).run(x), Session(tmp_path / "mapped.onnx").run(x)
        for a, b in zip(before, after, strict=True):
            # What comes out of a sigmoid near zero has an absolute error of its own.
            bound = 1e-5 * np.abs(a).max(initial=0) + 1e-7
            assert np.abs(a.astype(np.float64) - b).max(initial=0) <= bound
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert document.to_proto().SerializeToString(deterministic=True) == source


def test_every_model_with_centred_inputs(zoo_model, tmp_path):
    path, entry = zoo_model
    document = Document.load(path)
    sites, _ = find_sites(document, plan(document))
    x = feeds(document, entry["name"])
    if entry["ort_load"] != "ok" or not sites or any(values.ndim == 0 for values in x.values()):
        return
    done, _ = centre(document, x)
    suited = [label for label, site in sites.items() if KINDS["bypass"].unsuited(site) is None]
    bypassed, _ = insert_all(document, [Choice(label, "bypass", 0.1) for label in suited], seed=0)
    assert done or suited
    before = Session(path).run(x)
    for changed in (document, bypassed):
        changed.save(tmp_path / "changed.onnx", force=True)
        for a, b in zip(before, Session(tmp_path / "changed.onnx").run(x), strict=True):
            if a.dtype.kind == "f":
                bound = 1e-4 * np.abs(a).max(initial=0) + 1e-6
                assert np.abs(a.astype(np.float64) - b).max(initial=0) <= bound


def test_folding_a_third_party_block(zoo, tmp_path):
    path, _ = zoo("trt_residual_block")
    document = Document.load(path)
    result = Pipeline.parse("fold-batch-norm,map-crossbar").run(document, [Verifying()])
    assert "fold-batch-norm: 5 of 5 nodes folded" in result.notes
    document.save(tmp_path / "folded.onnx")
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 224, 224)).astype(np.float32)
    before, after = Session(path).run(x)[0], Session(tmp_path / "folded.onnx").run(x)[0]
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_external_data_of_a_third_party_model(zoo, tmp_path):
    path, _ = zoo("fashion_dynamo_extdata")
    document = Document.load(path)
    Pipeline.parse("map-crossbar").run(document)
    document.save(tmp_path / "mapped.onnx")
    lowered = Document.load(tmp_path / "mapped.onnx")
    Pipeline.parse("lower-analog{mark=false}").run(lowered)
    lowered.save(tmp_path / "lowered.onnx")
    expected, actual = onnx.load(path), onnx.load(tmp_path / "lowered.onnx")
    assert actual == expected
