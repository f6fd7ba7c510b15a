"""Compiler passes that keep ONNX models accurate on analog in-memory-computing chips.

``cnpass.optimize(model)`` is the main job; ``cnpass.inspect(model)`` and ``cnpass.evaluate(model)`` tell
what of a model is analog and how it fares on simulated chips. ``cnpass.Session(path)`` runs one chip.
Everything is imported when first used, so that ``import cnpass`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnpass.evaluation.evaluate import evaluate
    from cnpass.inspection import inspect
    from cnpass.optimization import calibrate, optimize, retrain, search
    from cnpass.runtime.library import get_library_path
    from cnpass.runtime.session import Session

__all__ = [
    "Session",
    "__version__",
    "calibrate",
    "errors",
    "evaluate",
    "get_library_path",
    "inspect",
    "optimize",
    "retrain",
    "search",
]

_HOME = {
    "Session": "cnpass.runtime.session",
    "calibrate": "cnpass.optimization",
    "evaluate": "cnpass.evaluation",
    "get_library_path": "cnpass.runtime.library",
    "inspect": "cnpass.inspection",
    "optimize": "cnpass.optimization",
    "retrain": "cnpass.optimization",
    "search": "cnpass.optimization",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "errors":
        return import_module("cnpass.errors")
    if name == "__version__":
        try:
            return metadata.version("cnpass")
        except metadata.PackageNotFoundError:  # run from a source tree
            return "0+source"
    if name not in _HOME:
        raise AttributeError(f"module 'cnpass' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # also where a submodule of that name has just been bound
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
