"""Run folders: resume, refusal of changed inputs, torn lines, locks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cnpass.errors import UsageError
from cnpass.runfolder import RunFolder, default_run

IDENTITY = {"model": "a" * 64, "options": {"std": [1.0, 2.0]}}


def test_lines_survive(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", "evaluate", IDENTITY) as folder:
        folder.journal("chips").append({"chip": 0, "value": 0.25})
    with RunFolder(tmp_path / "run", "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
        assert journal.lines == [{"chip": 0, "value": 0.25}]
        journal.append({"chip": 1, "value": 0.5})
    text = (tmp_path / "run" / "evaluate" / "chips.jsonl").read_text()
    assert [json.loads(line)["chip"] for line in text.splitlines()] == [0, 1]


def test_line_is_on_file_before_close(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
        journal.append({"chip": 0})
        assert journal.path.read_text() == '{"chip": 0}\n'


@pytest.mark.parametrize("torn", ['{"chip": 1, "va', '{"chip": 1}', "\0\0\0"])
def test_torn_tail_is_dropped_and_the_next_line_is_whole(tmp_path: Path, torn: str) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
        journal.append({"chip": 0})
    with journal.path.open("a") as file:
        file.write(torn)
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
        assert journal.lines == [{"chip": 0}]
        journal.append({"chip": 2})
    assert journal.path.read_text() == '{"chip": 0}\n{"chip": 2}\n'


def test_half_a_line_is_taken_back_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
        journal.append({"chip": 0})
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
        with pytest.raises(OSError, match=r"No space left on device: '.*chips\.jsonl'"):
            journal.append({"chip": 1})
    assert journal.path.read_text() == '{"chip": 0}\n'
    assert journal.lines == [{"chip": 0}]


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        journal = folder.journal("chips")
    journal.path.write_text('{"chip": 0}\nrubbish\n{"chip": 2}\n')
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder, pytest.raises(UsageError, match="damaged"):
        folder.journal("chips")


def test_changed_input_is_named_and_restart_starts_over(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY) as folder:
        folder.journal("chips").append({"chip": 0})
        (folder.path / "checkpoints").mkdir()
    changed = IDENTITY | {"model": "b" * 64}
    with pytest.raises(UsageError, match=r"with another model;.*--restart"):
        RunFolder(tmp_path, "evaluate", changed)
    with RunFolder(tmp_path, "evaluate", changed, restart=True) as folder:
        assert folder.journal("chips").lines == []
        assert not (folder.path / "checkpoints").exists()
    with RunFolder(tmp_path, "evaluate", changed):
        pass


def test_second_process_is_kept_out(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, "evaluate", IDENTITY),
        pytest.raises(UsageError, match="another process"),
    ):
        RunFolder(tmp_path, "evaluate", IDENTITY)
    with RunFolder(tmp_path, "evaluate", IDENTITY):
        pass


def fail(root: Path, first: Callable[[RunFolder], object]) -> None:
    with RunFolder(root, "evaluate", IDENTITY) as folder:
        first(folder)
        raise KeyError


def test_failure_without_results_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail(tmp_path / "run", lambda folder: folder.journal("chips"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "keep",
    [
        lambda folder: folder.journal("chips").append({"chip": 0}),
        lambda folder: (folder.path / "checkpoint").write_text("state"),
    ],
)
def test_failure_with_results_keeps_them(tmp_path: Path, keep: Callable[[RunFolder], object]) -> None:
    with pytest.raises(KeyError):
        fail(tmp_path / "run", keep)
    assert len(list((tmp_path / "run" / "evaluate").iterdir())) == 3


def test_verbs_do_not_meet(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "evaluate", IDENTITY), RunFolder(tmp_path, "optimize", {"model": "other"}):
        pass


def test_foreign_folder_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"no run folder \(it holds thesis.tex\)"):
        RunFolder(tmp_path, "evaluate", IDENTITY, restart=True)
    assert (tmp_path / "evaluate" / "thesis.tex").read_text() == "years of work"


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="cannot be used as run folder"):
        RunFolder(tmp_path / "run", "evaluate", IDENTITY)


def test_default_run_folder_is_beside_the_model() -> None:
    assert default_run(Path("nets/a.b.onnx")) == Path("nets/a.b.cnpass.run")


def test_a_full_disk_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("cnpass.runfolder.write_text", full)
    with pytest.raises(OSError, match="full"):
        RunFolder(tmp_path / "run", "evaluate", {})
    assert not (tmp_path / "run").exists()
