"""The allocator of the C library, told to keep what it is given back.

Each training step and each inference asks for the same few large buffers again. By default glibc returns
them to the system in between, and the system hands out zeroed pages every time, which costs a third of a
small network's time and more on a virtual machine.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Keep freed buffers for reuse in this process; nothing happens where the C library is not glibc.

    For processes of our own only: it is not for a library to change the allocator of its host.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
