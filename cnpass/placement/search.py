"""Placement search: one Optuna study over node and ratio, every trial on the same validation chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cnpass.compensation.kinds import Kind
from cnpass.progress import Progress
from cnpass.training.schedule import seed_of

if TYPE_CHECKING:
    import optuna

Scorer = Callable[["Choice"], "float | None"]
"""Gives the figure of a placement on the validation chips, or None where it costs too much."""

RATIOS = (0.05, 0.1, 0.25, 0.5)
STUDY = "placement"
_FINISHED = ("COMPLETE", "PRUNED")


@dataclass(frozen=True)
class Choice:
    """One placement.

    Attributes:
        node: Label of the node.
        kind: Kind of compensation.
        ratio: Filters of the generator over output channels.
    """

    node: str
    kind: Kind
    ratio: float


@dataclass(frozen=True)
class Space:
    """What the search may choose from."""

    nodes: Sequence[str]
    kinds: Sequence[Kind] = ("residual",)
    ratios: Sequence[float] = RATIOS


def search(
    space: Space,
    score: Scorer,
    *,
    trials: int,
    seed: int,
    storage: Path | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    progress: Progress | None = None,
) -> tuple[Choice, float] | None:
    """Find the placement with the best figure (Optuna's TPE sampler; J. Bergstra et al., 2011).

    Every trial has a seed of its own, so a search that was interrupted and resumed proposes what it would
    have proposed. A placement that was tried before is not trained again.

    Args:
        space: What to choose from.
        score: Trains and measures one placement.
        trials: Placements to propose.
        seed: Seed of the sampler.
        storage: SQLite file that keeps the study; None for memory.
        direction: Which figures are better.
        progress: Told what happens.

    Returns:
        The best placement and its figure; None where every proposal costs too much.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=STUDY,
        direction=direction,
        storage=None if storage is None else f"sqlite:///{storage}",
        load_if_exists=True,
    )
    finished = _finished(study)
    with (progress or Progress()).task("placement", trials, done=min(trials, len(finished))) as task:
        for number in range(len(finished), trials):
            study.sampler = optuna.samplers.TPESampler(seed=seed_of(seed, "placement", number) % 2**32)
            study.optimize(lambda trial: _run(trial, study, space, score), n_trials=1)
            task.advance()
            if (best := _best(study)) is not None:
                task.describe(f"best {best[1]:.4g}")
    return _best(study)


def _run(trial: optuna.Trial, study: optuna.Study, space: Space, score: Scorer) -> float:
    import optuna

    choice = Choice(
        node=str(trial.suggest_categorical("node", list(space.nodes))),
        kind=cast(Kind, trial.suggest_categorical("kind", list(space.kinds))),
        ratio=float(trial.suggest_categorical("ratio", list(space.ratios))),
    )
    known = next((t for t in _finished(study) if t.params == trial.params), None)
    value = (known.value if known.state.name == "COMPLETE" else None) if known else score(choice)
    if value is None:
        raise optuna.TrialPruned(f"{choice} costs more than is allowed")
    return value


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _FINISHED]


def _best(study: optuna.Study) -> tuple[Choice, float] | None:
    complete = [trial for trial in _finished(study) if trial.state.name == "COMPLETE"]
    if not complete:
        return None
    best = study.best_trial
    assert best.value is not None  # noqa: S101 (a complete trial has a value)
    return Choice(best.params["node"], best.params["kind"], best.params["ratio"]), best.value
