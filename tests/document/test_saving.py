"""Files appear whole or not at all, and never over the source."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper

from cnpass import external as external_data
from cnpass.document import Document
from cnpass.errors import ModelError, UsageError


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small(tmp_path, build):
    path = tmp_path / "model.onnx"
    path.write_bytes(build([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString())
    return path


def test_the_source_is_never_written(small, tmp_path):
    document = Document.load(small)
    for target in (small, tmp_path / "." / "model.onnx"):
        with pytest.raises(UsageError, match="is the source"):
            document.save(target, force=True)
    (tmp_path / "link.onnx").symlink_to(small)
    with pytest.raises(UsageError, match="is the source"):
        document.save(tmp_path / "link.onnx", force=True)


def test_an_existing_file_needs_force(small, tmp_path):
    document = Document.load(small)
    target = tmp_path / "out.onnx"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        document.save(target)
    assert target.read_text() == "mine"
    document.save(target, force=True)
    assert target.read_bytes() == small.read_bytes()


def test_a_folder_that_is_not_there(small, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        Document.load(small).save(tmp_path / "none" / "out.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        Document.load(small).save(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(small, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        Document.load(small).save(closed / "out.onnx")


def test_permissions_follow_the_umask(small, tmp_path):
    old = os.umask(0o027)
    try:
        Document.load(small).save(tmp_path / "out.onnx")
    finally:
        os.umask(old)
    assert (tmp_path / "out.onnx").stat().st_mode & 0o777 == 0o640


def test_same_input_same_bytes(external, tmp_path):
    path, _ = external()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Document.load(path).save(tmp_path / name / "m.onnx")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_external_data_are_carried_along(external, tmp_path):
    path, weights = external()
    Document.load(path).save(tmp_path / "out.onnx")
    loaded = onnx.load(tmp_path / "out.onnx")
    for tensor in loaded.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), weights[tensor.name])
    kept = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in kept]
    assert {entry["location"] for entry in entries} == {"out.onnx.data"}
    assert all(int(entry["offset"]) % external_data.ALIGNMENT == 0 for entry in entries)


def test_changed_weights_move_into_the_model(external, tmp_path):
    path, weights = external()
    document = Document.load(path)
    document.graph.nodes[1].inputs[1].values = weights["w2"] * 2
    document.save(tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert [external_data.is_external(tensor) for tensor in saved] == [True, False, True]
    loaded = Document.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(loaded.graph.nodes[1].inputs[1].values, weights["w2"] * 2)
    np.testing.assert_array_equal(loaded.graph.nodes[2].inputs[1].values, weights["w3"])


def test_reading_external_values_leaves_them_external(external):
    path, weights = external()
    document = Document.load(path)
    np.testing.assert_array_equal(document.graph.nodes[0].inputs[1].values, weights["w1"])
    assert external_data.is_external(document.to_proto().graph.initializer[0])


def test_source_data_are_never_written(external):
    path, _ = external()
    before = (path.parent / "weights.bin").read_bytes()
    (path.parent / "out.onnx.data").symlink_to("weights.bin")
    with pytest.raises(UsageError, match="is the source"):
        Document.load(path).save(path.parent / "out.onnx", force=True)
    assert (path.parent / "weights.bin").read_bytes() == before


def test_an_existing_data_file_needs_force(external, tmp_path):
    path, _ = external()
    (tmp_path / "out.onnx.data").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.onnx\.data: exists already"):
        Document.load(path).save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    Document.load(path).save(tmp_path / "out.onnx", force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), MemoryError])
@pytest.mark.parametrize("where", ["copy_region", "fsync", "replace"])
def test_nothing_half_written(external, tmp_path, monkeypatch, error, where):
    path, _ = external()
    target = tmp_path / "target"
    target.mkdir()
    (target / "other").write_text("kept")
    calls = 0

    def fail(*_args, **_kwargs):
        nonlocal calls
        calls += 1
        if calls == 2 or where == "replace":
            raise error
        return real(*_args, **_kwargs)

    owner = {"copy_region": external_data, "fsync": os, "replace": type(tmp_path)}[where]
    real = getattr(owner, where)
    monkeypatch.setattr(owner, where, fail)
    expected = UsageError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        Document.load(path).save(target / "out.onnx")
    assert files(target) == {"other": b"kept"}


def test_copying_does_not_hold_weights_in_memory(external, tmp_path):
    path, _ = external(size=1536)  # three weights of 9 MB
    tracemalloc.start()
    try:
        document = Document.load(path)
        document.save(tmp_path / "out.onnx")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out.onnx.data").stat().st_size > 27e6
    assert peak < 3 * external_data.CHUNK


def test_holes_stay_holes(tmp_path, build):
    size = 1 << 26
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.zeros(1, np.uint8)})
    tensor = model.graph.initializer[0]
    tensor.dims[0] = size
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.seek(size // 2)
        file.write(b"\x07" * 100)
        file.truncate(size)
    if (tmp_path / "w.bin").stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    Document.load(tmp_path / "model.onnx").save(tmp_path / "out.onnx")
    copied = tmp_path / "out.onnx.data"
    assert copied.stat().st_size == size
    assert copied.stat().st_blocks * 512 < size // 2
    assert np.flatnonzero(np.fromfile(copied, np.uint8)).tolist() == list(range(size // 2, size // 2 + 100))


def test_a_file_system_that_knows_no_holes_loses_no_weights(external, tmp_path, monkeypatch):
    whole = Document.load(external()[0])
    whole.save(tmp_path / "a.onnx")

    def lseek(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "lseek", lseek)
    whole.save(tmp_path / "b.onnx")
    assert any((tmp_path / "a.onnx.data").read_bytes())
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("../outside.bin", "is not a path inside"),
        ("sub/../../outside.bin", "is not a path inside"),
        ("/etc/hostname", "is not a path inside"),
        ("C:\\weights.bin", "is not a path inside"),
        ("", "is not a path inside"),
        ("missing.bin", "is missing"),
        ("link.bin", "leaves the model's folder"),
        (".", "not a regular file"),
    ],
)
def test_data_paths_stay_in_the_folder(external, tmp_path, location, text):
    path, _ = external(location=location)
    (tmp_path / "outside.bin").write_bytes(bytes(1 << 16))
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    document = Document.load(path)
    actions = (
        lambda: document.save(tmp_path / "out.onnx"),
        lambda: document.graph.nodes[0].inputs[1].values,
        lambda: document.sha256,
        document.embedded,
    )
    for action in actions:
        with pytest.raises(ModelError, match=text):
            action()
    assert not (tmp_path / "out.onnx").exists()


def test_data_files_that_are_too_short(external, tmp_path):
    path, _ = external()
    os.truncate(path.parent / "weights.bin", 100)
    with pytest.raises(ModelError, match="too short"):
        Document.load(path).save(tmp_path / "out.onnx")


@pytest.mark.parametrize(("key", "value"), [("length", "12"), ("offset", "-4"), ("offset", "x")])
def test_data_entries_that_make_no_sense(external, tmp_path, key, value):
    path, _ = external()
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="tensor 'w1'"):
        Document.load(path).save(tmp_path / "out.onnx")


def test_hash_counts_the_data(external, small):
    assert Document.load(small).sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    path, _ = external()
    before = Document.load(path).sha256
    with (path.parent / "weights.bin").open("r+b") as file:
        file.write(b"\x01")
    assert Document.load(path).sha256 != before


def test_a_document_in_memory_has_a_hash_too(build):
    model = build([helper.make_node("Relu", ["x"], ["y"])])
    document = Document.from_proto(model)
    assert document.sha256 == Document.from_proto(model).copy().sha256


@pytest.mark.slow
def test_a_large_model_in_little_memory(tmp_path, build):
    """600 MB of weights through a whole rewrite, in a process of its own whose peak memory counts."""
    count, size = 150, 1024
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(count)]
    model = build(nodes, inputs={"t0": ["n", size]}, outputs=[f"t{count}"])
    block = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32).tobytes()
    with (tmp_path / "w.bin").open("wb") as file:
        for i in range(count):
            tensor = model.graph.initializer.add(
                name=f"w{i}", data_type=1, dims=[size, size], data_location=1
            )
            entries = {"location": "w.bin", "offset": str(file.tell()), "length": str(len(block))}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
            file.write(block)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    script = f"""
import resource
from cnpass.document import Document
from cnpass.passes import Pipeline
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
document = Document.load({str(tmp_path / "model.onnx")!r})
Pipeline.parse("map-crossbar").run(document)
document.save({str(tmp_path / "out.onnx")!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (tmp_path / "out.onnx.data").stat().st_size >= count * len(block)
    assert int(result.stdout) < 100 * 1024  # KiB, of which the passes' own imports are a part
