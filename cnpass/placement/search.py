"""Placement search: one Optuna study over kind and ratio of every candidate node at once.

Every trial is measured on the same validation chips, so that two figures differ by the placement alone. The
limit on overhead is part of how a placement is proposed: nodes are asked in an order of the trial's own, and
each may be as wide as what the others left allows. So nothing is ever proposed that costs too much.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cnpass.compensation.kinds import Kind
from cnpass.errors import UsageError
from cnpass.placement.space import Choice, Placement, Space
from cnpass.progress import Progress
from cnpass.training.schedule import seed_of

if TYPE_CHECKING:
    import optuna

Scorer = Callable[[Placement], float]
"""Gives the figure of a placement on the validation chips; more is better."""

STUDY = "placement"
_FIRST = 10
"""Placements before the sampler's own: none, the cheapest everywhere, then random ones within the limit."""
_ASKED = 4
"""Proposals per placement to measure, at most: a small space has no more than it has."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        placement: The best placement; of several equally good ones the cheapest. Empty if none is better than
            no compensation.
        value: Its figure.
        compensated: The best placement that has any compensation, since training it alone may yet make it
            better than none; empty if the limit allows none.
        nothing: The figure without compensation.
        figures: The figure of every placement that was measured, in the order of the trials.
    """

    placement: Placement
    value: float
    compensated: Placement
    nothing: float
    figures: Mapping[Placement, float]


def search(
    space: Space,
    score: Scorer,
    *,
    trials: int,
    seed: int,
    storage: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find the placement with the best figure (Optuna's TPE sampler; J. Bergstra et al., 2011).

    The first trial is no compensation, the second the cheapest at every node. Every trial has a seed of its
    own, so a search that was interrupted and resumed proposes what it would have proposed. A placement that
    comes again is not measured again; a random one follows it, lest the sampler go on in a circle.

    Args:
        space: What to choose from.
        score: Measures one placement.
        trials: Placements to measure, all of them within the limit.
        seed: Seed of the sampler.
        storage: SQLite file that keeps the study; None for memory.
        progress: Told what happens.
    """
    return _Search(space, score, trials=trials, seed=seed, storage=storage).run(progress or Progress())


class _Store:
    """The study on disk."""

    def __init__(self, path: Path) -> None:
        import optuna

        with _naming(path):
            self._path = path
            self._study = optuna.create_study(
                study_name=STUDY, direction="maximize", storage=f"sqlite:///{path}", load_if_exists=True
            )
            self.trials = self._study.get_trials(deepcopy=False)

    def add(self, trial: optuna.trial.FrozenTrial) -> None:
        """Keep a finished trial."""
        with _naming(self._path):
            self._study.add_trial(trial)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors of the database into one line that names its file."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UsageError(
            f"{path}: the study cannot be read or written ({reason}); free the disk, or --restart starts over"
        ) from error


class _Search:
    def __init__(self, space: Space, score: Scorer, *, trials: int, seed: int, storage: Path | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.score, self.trials, self.seed = space, score, trials, seed
        # Trials are made in memory and stored whole: a kill leaves no half of one, and a database that
        # syncs every parameter would take longer than many an evaluation.
        self.study = optuna.create_study(direction="maximize")
        self.store = storage and _Store(storage)
        self.values: dict[Placement, float] = {}
        self.asked = 0
        self.repeated = False
        for trial in self.store.trials if self.store else ():
            self.study.add_trial(trial)
            self._count(self._placement(trial.params), float(trial.value or 0.0))

    def run(self, progress: Progress) -> Found:
        """Propose and measure until there are enough trials."""
        with progress.task("placement", self.trials, done=min(len(self.values), self.trials)) as task:
            while len(self.values) < self.trials and self.asked < _ASKED * self.trials:
                self._trial()
                if not self.repeated:
                    task.advance()
                    task.describe(f"best {max(self.values.values()):.4g}")
        best = self._best(self.values)
        compensated = self._best(filter(None, self.values))
        return Found(best, self.values[best], compensated, self.values[()], dict(self.values))

    def _best(self, placements: Iterable[Placement]) -> Placement:
        """Return the one with the best figure, and of several the cheapest."""
        return max(placements, key=lambda p: (self.values[p], -self.space.excess(p)), default=())

    def _trial(self) -> None:
        from optuna.samplers import TPESampler

        seed = seed_of(self.seed, "placement", self.asked)
        self.study.sampler = TPESampler(n_startup_trials=0, seed=seed % 2**32)
        given = self._given(seed)
        if given is not None:
            self.study.enqueue_trial(self._params(given))
        trial = self.study.ask()
        placement = self._suggest(trial, random.Random(seed))
        value = self.values[placement] if placement in self.values else self.score(placement)
        finished = self.study.tell(trial, value)
        if self.store:
            self.store.add(finished)
        self._count(placement, value)

    def _count(self, placement: Placement, value: float) -> None:
        self.asked += 1
        self.repeated = placement in self.values
        self.values[placement] = value

    def _given(self, seed: int) -> Placement | None:
        """Return the placement to try next where that is not for the sampler to say."""
        if self.asked == 0:
            return ()
        if self.asked == 1:
            return self.space.cheapest()
        return self.space.sample(seed) if self.asked < _FIRST or self.repeated else None

    def _suggest(self, trial: optuna.Trial, draw: random.Random) -> Placement:
        """Ask for kind and size of every node, in an order that gives each the same chance of being first."""
        taken: list[Choice] = []
        for node in draw.sample(list(self.space.nodes), len(self.space.nodes)):
            kind = cast(Kind, trial.suggest_categorical(f"{node} kind", list(self.space.kinds)))
            ways = [Choice(node, kind, ratio) for ratio in self.space.ratios]
            fitting = [way for way in ways if self.space.excess([*taken, way]) <= 0]
            size = trial.suggest_int(f"{node} size", 0, len(fitting))
            taken += ways[:size][-1:]
        return self.space.ordered(taken)

    def _placement(self, params: Mapping[str, Any]) -> Placement:
        sizes = {node: int(params[f"{node} size"]) for node in self.space.nodes}
        return tuple(
            Choice(node, cast(Kind, params[f"{node} kind"]), self.space.ratios[size - 1])
            for node, size in sizes.items()
            if size
        )

    def _params(self, placement: Placement) -> dict[str, Any]:
        """Write a placement as parameters; a node that is not compensated has the first kind."""
        chosen = {choice.node: choice for choice in placement}
        params: dict[str, Any] = {}
        for node in self.space.nodes:
            choice = chosen.get(node)
            params[f"{node} kind"] = choice.kind if choice else self.space.kinds[0]
            params[f"{node} size"] = self.space.ratios.index(choice.ratio) + 1 if choice else 0
        return params
