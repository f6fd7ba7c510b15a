"""Scripts of the folder of bundled models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, models: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of models/ the way `python models/<script>.py` sees it, and forgets it afterwards.

    Other folders have files of the same names.
    """
    monkeypatch.syspath_prepend(str(models))
    names = [path.stem for path in models.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
