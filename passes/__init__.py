"""Graph passes, one per file, and pipelines of them."""

from cnpass.passes.base import Pass, PassDescription, PassError, PassResult
from cnpass.passes.pipeline import Pipeline
from cnpass.passes.registry import get_pass, pass_names

__all__ = ["Pass", "PassDescription", "PassError", "PassResult", "Pipeline", "get_pass", "pass_names"]
