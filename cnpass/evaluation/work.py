"""What a pool of worker processes runs: a job that all units share, and units; both travel as JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import TypeAdapter

J = TypeVar("J")
U = TypeVar("U")
V = TypeVar("V")


@dataclass(frozen=True)
class Outcome(Generic[U, V]):
    """What a unit came to."""

    unit: U
    value: V
    seconds: float


class Runner(ABC, Generic[J, U, V]):
    """Measures units. It knows nothing but the job, so it runs in any process.

    Attributes:
        jobs: reads and writes jobs.
        units: reads and writes units.
    """

    jobs: ClassVar[TypeAdapter[Any]]
    units: ClassVar[TypeAdapter[Any]]

    @abstractmethod
    def __init__(self, job: J) -> None:
        """Get ready for units."""

    @abstractmethod
    def measure(self, unit: U) -> Outcome[U, V]:
        """Measure one unit; the value is one that JSON has."""

    @classmethod
    def address(cls) -> str:
        """Where another process finds the class."""
        return f"{cls.__module__}:{cls.__qualname__}"


def find_runner(address: str) -> type[Runner[Any, Any, Any]]:
    """The class of an address."""
    module, _, name = address.partition(":")
    found: type[Runner[Any, Any, Any]] = getattr(import_module(module), name)
    return found
