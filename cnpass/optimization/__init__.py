"""The main job: retrain, place, compensate and prove, as stages that can be recomputed or read back."""

from cnpass.optimization.run import optimize

__all__ = ["optimize"]
