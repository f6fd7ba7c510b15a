"""Freed memory is kept: the second use of a buffer costs no new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from cnpass.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    for _ in range(20):
        held = [np.ones(1 << 20) for _ in range(8)]
        del held
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_buffers_are_reused() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], stdout=-1, check=True, text=True).stdout)
        for how in ("keep", "default")
    }
    assert faults["keep"] < 100 < faults["default"]
