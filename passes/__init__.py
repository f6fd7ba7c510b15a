"""Graph passes, one per file, and pipelines of them."""

from cnpass.passes.base import Pass, PassDescription, PassError, PassResult
from cnpass.passes.pipeline import Callback, Pipeline, Printing, Timing, Verifying
from cnpass.passes.registry import get_pass, pass_names

__all__ = [
    "Callback",
    "Pass",
    "PassDescription",
    "PassError",
    "PassResult",
    "Pipeline",
    "Printing",
    "Timing",
    "Verifying",
    "get_pass",
    "pass_names",
]
