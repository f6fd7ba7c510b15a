"""The main job: retrain, place, compensate and prove, as stages that can be recomputed or read back."""

from cnpass.optimization.calibrating import calibrate
from cnpass.optimization.retraining import retrain
from cnpass.optimization.run import optimize
from cnpass.optimization.searching import search

__all__ = ["calibrate", "optimize", "retrain", "search"]
