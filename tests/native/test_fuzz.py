"""A slice of the fuzz cases; `fuzz_ops.py` runs as many as one likes; docs/safety.md says how many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_slice(library_path):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_ops.py")), "--library", str(library_path)]
    done = subprocess.run([*command, "--cases", "800"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = {line[10:]: int(line[:8]) for line in done.stdout.splitlines()}
    assert sum(outcomes.values()) == 800
    # Neither does everything work, nor is everything refused.
    assert 200 < outcomes["an output"] < 600
    assert len(outcomes) > 20
