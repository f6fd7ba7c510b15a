"""Errors that end in one clear line and a documented exit code."""

from __future__ import annotations

from typing import ClassVar


class CnpassError(Exception):
    """Base of every error that cnpass raises on purpose; its text names what is wrong and what to do."""

    exit_code: ClassVar[int] = 70


class GateError(CnpassError):
    """A gate that the user set (for example a minimal retention) was not met."""

    exit_code = 1


class UsageError(CnpassError):
    """An option, a recipe or an output path cannot be used as given."""

    exit_code = 2


class ModelError(CnpassError):
    """The model is invalid, or has nothing that the request applies to."""

    exit_code = 3


class DataError(CnpassError):
    """The data are missing or do not fit the model."""

    exit_code = 4


class MissingDependencyError(CnpassError):
    """An optional part (a package, the native library) is not installed."""

    exit_code = 5
