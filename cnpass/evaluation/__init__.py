"""Monte-Carlo evaluation: one model, one set of samples, many simulated chips.

``evaluate`` gives a record; ``MonteCarlo`` and ``monte_carlo`` are what it and others are made of.
"""

from cnpass.evaluation.evaluate import evaluate
from cnpass.evaluation.montecarlo import VALIDATION_CHIPS_START, MonteCarlo, monte_carlo

__all__ = ["VALIDATION_CHIPS_START", "MonteCarlo", "evaluate", "monte_carlo"]
