"""Where data may come from, and what is said when they cannot be read."""

from __future__ import annotations

import gzip
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from cnpass.data import load_data
from cnpass.errors import DataError

X = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
Y = np.array([1, 0], dtype=np.uint8)


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_test=X, y_test=Y)
    raw = load_data(tmp_path / "d.npz")
    assert raw is not None
    assert set(raw.arrays) == {"x_test", "y_test"}
    np.testing.assert_array_equal(raw.arrays["x_test"], X)


def test_folder_of_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    raw = load_data(str(tmp_path))
    assert raw is not None
    np.testing.assert_array_equal(raw.arrays["y"], Y)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_files(tmp_path: Path, suffix: str, dash: str) -> None:
    pack = gzip.compress if suffix else bytes
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images{dash}idx3-ubyte{suffix}").write_bytes(pack(idx(X)))
        (tmp_path / f"{part}-labels{dash}idx1-ubyte{suffix}").write_bytes(pack(idx(Y)))
    raw = load_data(tmp_path)
    assert raw is not None
    assert set(raw.arrays) == {"x_train", "y_train", "x_test", "y_test"}
    np.testing.assert_array_equal(raw.arrays["x_test"], X)
    np.testing.assert_array_equal(raw.arrays["y_train"], Y)


def test_idx_of_floats_comes_in_native_byte_order(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(X.astype(np.float32) / 7, 0x0D))
    raw = load_data(tmp_path)
    assert raw is not None
    np.testing.assert_array_equal(raw.arrays["x_test"], X.astype(np.float32) / 7)
    assert raw.arrays["x_test"].dtype.isnative


def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_digits.py").write_text(
        "import numpy as np\ndef arrays():\n    return {'x': np.ones((3, 2)), 'y': [0, 1, 0]}\n"
        "def broken():\n    return 1 / 0\ndef odd():\n    return 3\n"
        "def ragged():\n    return {'x': [[1, 2], [3]]}\n"
        "def leaves():\n    import os\n    os.chdir('/')\n    return {'x': [1]}\n"
    )
    monkeypatch.chdir(tmp_path)
    raw = load_data("my_digits:arrays")
    assert raw is not None
    assert raw.arrays["y"].tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"my_digits:broken: ZeroDivisionError: division by zero"):
        load_data("my_digits:broken")
    with pytest.raises(DataError, match="returned int, not a mapping"):
        load_data("my_digits:odd")
    with pytest.raises(DataError, match="nowhere_at_all"):
        load_data("nowhere_at_all:arrays")
    with pytest.raises(DataError, match="my_digits:ragged: ValueError: setting an array element"):
        load_data("my_digits:ragged")
    paths = list(sys.path)
    raw = load_data("my_digits:leaves")
    assert raw is not None
    assert raw.arrays["x"].tolist() == [1]
    assert sys.path == paths


@pytest.mark.parametrize(
    "model",
    ["net.onnx", "net.cnpass.onnx", "net.retrained.onnx", "net.compensated.chip12.onnx", "net.lowered.onnx"],
)
def test_npz_beside_the_model(tmp_path: Path, model: str) -> None:
    assert load_data(None, tmp_path / model) is None
    np.savez(tmp_path / "net.npz", x_test=X)
    raw = load_data(None, tmp_path / model)
    assert raw is not None
    assert raw.name == str(tmp_path / "net.npz")


def objects(path: Path) -> None:
    np.savez(path, x=np.array([object(), None]))


def truncated(path: Path) -> None:
    np.savez(path, x=np.zeros((200, 200)))
    path.write_bytes(path.read_bytes()[:1000])


def encrypted(path: Path) -> None:
    np.savez(path, x=X)
    raw = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + place] |= 1
    path.write_bytes(raw)


def text(path: Path) -> None:
    path.write_text("x,y\n1,2\n")


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (objects, "Object arrays cannot be loaded"),
        (encrypted, "is encrypted"),
        (truncated, "cannot be read as NPZ"),
        (text, "cannot be read as NPZ"),
        (single, "holds one array"),
        (Path.touch, "cannot be read as NPZ"),
        (Path.mkdir, "holds neither .npy files"),
        (lambda _: None, "no such file or folder"),
    ],
)
def test_unreadable(tmp_path: Path, write, said: str) -> None:
    path = tmp_path / "d.npz"
    write(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{said}") as error:
        load_data(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", idx(X)[:-1], b"\0\0\x07" + idx(X)[3:], b"\x1f\x8b rubbish"]
)
def test_broken_idx(tmp_path: Path, content: bytes) -> None:
    name = "t10k-images-idx3-ubyte" + (".gz" if content.startswith(b"\x1f") else "")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot be read as idx file"):
        load_data(tmp_path)
