"""Placement search: one Optuna study over kind and ratio of every candidate node at once.

Every trial is measured on the same validation chips, so that two figures differ by the placement alone. A
sampler proposes a kind and a size for each node, always in the same ranges, and the node whose turn comes
first; then each is as wide as what the limit on overhead leaves for it (`Space.fitted`). So nothing is ever
measured that costs too much.

Placements are proposed in rounds of fixed size, from the trials of the rounds before. So it makes no
difference how many processes measure a round, nor which of them is done first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from cnpass.compensation.kinds import Kind
from cnpass.errors import UsageError
from cnpass.placement.space import Choice, Placement, Space
from cnpass.progress import Progress, Task
from cnpass.recipe import Sampler
from cnpass.training.schedule import seed_of

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler

Measure = Callable[[Sequence[Placement], Sequence[float]], Iterable[Sequence[float]]]
"""Gives the figures of placements in their order, chip by chip, more being better: of all chips, or of the
first few if those are surely worse than the second argument, another placement's figures (empty for none)."""

Direction = Literal["maximize", "minimize"]

STUDY = "placement"
ROUND = 4
"""Placements that are proposed before any of them is measured."""
POPULATION = 8
"""Placements per generation of NSGA-II: five generations in the default number of trials."""
_FIRST = 10
"""Placements before the sampler's own: none, the cheapest everywhere, each kind alone as wide as the limit
allows, then random ones within the limit."""
_ASKED = 4
"""Proposals per placement to measure, at most: a small space has no more than it has."""
_FIGURES = "figures"
_FIRST_NODE = "first"


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
        figures: The figures of every placement, chip by chip, in the order of the trials; where they are of
            fewer chips, it was given up as surely worse than a compensated one.
        front: The placements, all chips measured, that none is better than at the same or a lower cost; the
            cheapest first.
    """

    placement: Placement
    value: float
    compensated: Placement
    nothing: float
    figures: Mapping[Placement, tuple[float, ...]]
    front: tuple[Placement, ...]


def search(
    space: Space,
    measure: Measure,
    *,
    trials: int,
    seed: int,
    sampler: Sampler = "tpe",
    storage: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find the placement with the best figure.

    The samplers: ``tpe``, Optuna's tree-structured Parzen estimator (J. Bergstra et al., 2011); ``nsga2``, a
    genetic algorithm for two objectives, the figure and the overhead (K. Deb et al., 2002); ``reinforce``, a
    policy that learns (`cnpass.placement.reinforce`); ``random``, placements within the limit at random.

    The first trial is no compensation, the second the cheapest at every node, and then comes each kind alone,
    at as many nodes and as wide as the limit allows. Every trial has a seed of its own, so a search that was
    interrupted and resumed proposes what it would have proposed. A placement that comes again is not measured
    again; a random one follows it, lest the sampler go on in a circle. With one objective a placement that is
    surely worse than the best compensated one is given up.

    Args:
        space: What to choose from.
        measure: Measures a round of placements.
        trials: Placements to measure, all of them within the limit.
        seed: Seed of the sampler.
        sampler: What proposes.
        storage: SQLite file that keeps the study; None for memory.
        progress: Told what happens.
    """
    return _Search(space, measure, trials, seed, sampler, storage).run(progress or Progress())


class _Store:
    """The study on disk."""

    def __init__(self, path: Path, directions: Sequence[Direction]) -> None:
        import optuna

        with _naming(path):
            self._path = path
            if not path.exists():
                self._make(directions)
            self._study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")
            self.trials = self._study.get_trials(deepcopy=False)
            self._kept = len(self.trials)

    def _make(self, directions: Sequence[Direction]) -> None:
        """Make the database under another name: one that was killed half made would look like a whole one."""
        import optuna

        new = self._path.with_name(f"{self._path.name}.new")
        for left in (new, new.with_name(f"{new.name}-journal")):
            left.unlink(missing_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{new}")
        optuna.create_study(study_name=STUDY, directions=directions, storage=storage)
        storage.engine.dispose()
        new.replace(self._path)

    def keep(self, trial: optuna.trial.FrozenTrial) -> None:
        """Keep a finished trial, unless it is there from an earlier run."""
        if trial.number >= self._kept:
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
    def __init__(
        self, space: Space, measure: Measure, trials: int, seed: int, sampler: Sampler, storage: Path | None
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.measure, self.trials, self.seed = space, measure, trials, seed
        self.kind = sampler
        self.two = sampler == "nsga2"
        self.policy: BaseSampler | None = None
        widest = (replace(space, kinds=(kind,)).widest() for kind in space.kinds)
        self.given = tuple(dict.fromkeys(((), space.cheapest(), *widest)))
        # Trials are made in memory and stored whole: a kill leaves no half of one, and a database that
        # syncs every parameter would take longer than many an evaluation.
        directions: list[Direction] = ["maximize", "minimize"] if self.two else ["maximize"]
        self.study = optuna.create_study(directions=directions)
        self.store = storage and _Store(storage, directions)
        self.figures: dict[Placement, tuple[float, ...]] = {}
        self.spare: dict[Placement, tuple[float, ...]] = {}
        self.asked = 0
        self.repeated = False
        self._resume(self.store.trials if self.store else ())

    def _resume(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        """Take stored rounds as they are; of one that was interrupted, take only what was measured."""
        known: dict[Placement, tuple[float, ...]] = {}
        whole = 0
        for number, trial in enumerate(trials, start=1):
            placement = self._placement(trial.params)
            if placement not in known:
                known[placement] = tuple(trial.user_attrs[_FIGURES])
                if len(known) % ROUND == 0:
                    whole, self.figures = number, dict(known)
        self.spare = {placement: known[placement] for placement in known.keys() - self.figures.keys()}
        self.study.add_trials(trials[:whole])
        self.asked = whole

    def run(self, progress: Progress) -> Found:
        """Propose and measure until there are enough trials."""
        with progress.task("placement", self.trials, done=min(len(self.figures), self.trials)) as task:
            while len(self.figures) < self.trials and self.asked < self._most:
                self._round(task)
        values = self._values()
        best = self._best(values)
        return Found(
            placement=best,
            value=values[best],
            compensated=self._best(filter(None, values)),
            nothing=values[()],
            figures=dict(self.figures),
            front=front(self.space, values),
        )

    @property
    def _most(self) -> int:
        return _ASKED * self.trials

    def _values(self) -> dict[Placement, float]:
        """Return the mean of every placement that all chips were measured of."""
        chips = len(self.figures[()])
        return {p: float(np.mean(f)) for p, f in self.figures.items() if len(f) == chips}

    def _best(self, placements: Iterable[Placement]) -> Placement:
        """Return the one with the best figure, and of several the cheapest."""
        values = self._values()
        return max(placements, key=lambda p: (values[p], -self.space.share(p)), default=())

    def _round(self, task: Task) -> None:
        """Propose placements, then measure those that are new, then tell the sampler all of them."""
        wanted = min(ROUND, self.trials - len(self.figures))
        asked: list[tuple[optuna.Trial, Placement]] = []
        fresh: dict[Placement, None] = {}
        self.repeated = False
        while len(fresh) < wanted and self.asked < self._most:
            trial, placement = self._ask()
            asked.append((trial, placement))
            self.repeated = placement in self.figures or placement in fresh
            if not self.repeated:
                fresh[placement] = None
        best = self._bar()
        measured = iter(self.measure([p for p in fresh if p not in self.spare], best))
        for trial, placement in asked:
            if placement not in self.figures:
                self.figures[placement] = self.spare.get(placement) or tuple(next(measured))
                task.advance()
            finished = self._tell(trial, placement, best)
            if self.store:
                self.store.keep(finished)
        task.describe(f"best {max(self._values().values()):.4g}")

    def _bar(self) -> tuple[float, ...]:
        """Return the figures that placements are given up against: of the best compensated one, or none."""
        if self.two or not self.figures:
            return ()
        best = self._best(filter(None, self._values()))
        return self.figures[best] if best else ()

    def _ask(self) -> tuple[optuna.Trial, Placement]:
        seed = seed_of(self.seed, "placement", self.asked)
        self.study.sampler = self._sampler(seed)
        given = self._given(seed)
        if given is not None:
            self.study.enqueue_trial(self._params(given))
        trial = self.study.ask()
        self.asked += 1
        if self.two:
            self._choose_parents(trial, seed)
            trial.relative_params  # noqa: B018 (asked for, it makes a given placement, too, one of the generation)
        trial.suggest_categorical(_FIRST_NODE, list(self.space.nodes))
        for node in self.space.nodes:
            trial.suggest_categorical(_kind(node), list(self.space.kinds))
            trial.suggest_int(_size(node), 0, len(self.space.ratios))
        return trial, self._placement(trial.params)

    def _choose_parents(self, trial: optuna.Trial, seed: int) -> None:
        """Have the parents of a trial's generation chosen by a sampler that is not asked for anything else.

        Where they have just been chosen, Optuna has them in another order than where it remembers them; a
        search that was resumed would propose something else.
        """
        frozen, sampler = self.study.get_trials(deepcopy=False)[trial.number], self._sampler(seed)
        sampler.sample_relative(self.study, frozen, sampler.infer_relative_search_space(self.study, frozen))

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        number = seed % 2**32
        if self.kind == "tpe":
            return TPESampler(n_startup_trials=0, constant_liar=True, seed=number)
        if self.kind == "nsga2":
            return NSGAIISampler(population_size=POPULATION, seed=number)
        if self.kind == "random":
            return RandomSampler(seed=number)
        from cnpass.placement.reinforce import ReinforceSampler

        self.policy = self.policy or ReinforceSampler(self.seed)
        return self.policy

    def _given(self, seed: int) -> Placement | None:
        """Return the placement to try next where that is not for the sampler to say."""
        if self.asked < len(self.given):
            return self.given[self.asked]
        chance = self.asked < _FIRST or self.repeated or self.kind == "random"
        return self.space.sample(seed) if chance else None

    def _tell(
        self, trial: optuna.Trial, placement: Placement, best: Sequence[float]
    ) -> optuna.trial.FrozenTrial:
        from optuna.trial import TrialState

        figures = self.figures[placement]
        trial.set_user_attr(_FIGURES, list(figures))
        if len(figures) == len(self.figures[()]):
            value = float(np.mean(figures))
            values = [value, self.space.share(placement)] if self.two else value
            return self.study.tell(trial, values)
        trial.report(expected(figures, best), len(figures))
        return self.study.tell(trial, state=TrialState.PRUNED)

    def _placement(self, params: Mapping[str, Any]) -> Placement:
        """Return the placement that parameters stand for."""
        sizes = {node: int(params[_size(node)]) for node in self.space.nodes}
        choices = [
            Choice(node, cast(Kind, params[_kind(node)]), self.space.ratios[size - 1])
            for node, size in sizes.items()
            if size
        ]
        return self.space.fitted(choices, params[_FIRST_NODE])

    def _params(self, placement: Placement) -> dict[str, Any]:
        """Write a placement as parameters; a node that is not compensated has the first kind."""
        chosen = {choice.node: choice for choice in placement}
        params: dict[str, Any] = {_FIRST_NODE: self.space.nodes[0]}
        for node in self.space.nodes:
            choice = chosen.get(node)
            params[_kind(node)] = choice.kind if choice else self.space.kinds[0]
            params[_size(node)] = self.space.ratios.index(choice.ratio) + 1 if choice else 0
        return params


def expected(figures: Sequence[float], best: Sequence[float]) -> float:
    """Return what the mean over all chips would be, by the mean difference to another placement so far.

    Args:
        figures: Of the first chips.
        best: Those of the other placement, of all chips.
    """
    differences = [value - other for value, other in zip(figures, best, strict=False)]
    return float(np.mean(best) + np.mean(differences))


def front(space: Space, values: Mapping[Placement, float]) -> tuple[Placement, ...]:
    """Return the placements that none is better than at the same or a lower cost, the cheapest first.

    Args:
        space: Tells what they cost.
        values: Figures by placement.
    """
    kept: list[Placement] = []
    best = -math.inf
    for placement in sorted(values, key=lambda p: (space.share(p), -values[p])):
        if values[placement] > best:
            kept.append(placement)
            best = values[placement]
    return tuple(kept)


def _kind(node: str) -> str:
    return f"{node} kind"


def _size(node: str) -> str:
    return f"{node} size"
