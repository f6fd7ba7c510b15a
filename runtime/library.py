"""Where the native library lies."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from cnpass.errors import MissingDependencyError

LIBRARY = "libcnpass_ort.so"
WITHOUT_LIBRARY = "CNPASS_NO_NATIVE"
"""Environment variable; set to 1, cnpass behaves as if the library had not been built."""


def get_library_path() -> Path:
    """Path of the native library, for anyone's `SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: it was not built, or the environment variable CNPASS_NO_NATIVE is 1.
    """
    if os.environ.get(WITHOUT_LIBRARY) == "1":
        raise MissingDependencyError(f"the native library is switched off by {WITHOUT_LIBRARY}=1; unset it")
    # Under an editable install the library is not beside this file, so ask for it as a resource.
    path = resources.files("cnpass.runtime").joinpath(LIBRARY)
    if not isinstance(path, Path) or not path.is_file():
        raise MissingDependencyError(
            "the native library was not built with this installation of cnpass; reinstall cnpass where a C++ "
            "compiler is found, or map with portable=always so that the file carries function bodies"
        )
    return path


def has_library() -> bool:
    """Whether `get_library_path` gives a path."""
    try:
        get_library_path()
    except MissingDependencyError:
        return False
    return True
