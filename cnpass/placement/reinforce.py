"""A sampler for Optuna that learns a policy: REINFORCE with an LSTM over the parameters.

The policy asks itself one parameter after another, as an objective asks for them, each with all before it in
mind (B. Zoph and Q. V. Le, "Neural architecture search with reinforcement learning", ICLR 2017). Every
finished trial moves its weights along

    (reward - baseline) / spread * grad log pi(parameters) + weight * grad entropy

(R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
1992), the baseline being the moving average of the rewards before, and spread the root of that of the squared
differences. A trial whose parameters were given (enqueued) is no draw of the policy, so the formula does not
hold for it: it moves the averages, and nothing else.

The policy is a function of the seed and of the study's finished trials in the order of their numbers, and
a draw one of the policy, the number of the trial and the name of the parameter. So it does not matter which
process measured a trial, or whether the study was stored and loaded in between.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from cnpass.training.schedule import seed_of

MOST_OPTIONS = 64
"""A parameter with more values than that, or with a continuum of them, is drawn at random."""
HIDDEN = 32
"""Width of the LSTM and of what it is told of each choice."""
_DECAY = 0.9
"""Of the moving averages of reward and squared advantage."""
_GIVEN = "fixed_params"
"""Where Optuna notes the parameters that a trial was enqueued with."""


@dataclass(frozen=True)
class Step:
    """One parameter and what was chosen.

    Attributes:
        name: What the policy knows the parameter by; another range is another one.
        options: Number of its values.
        choice: Index of the value chosen.
    """

    name: str
    options: int
    choice: int


class Policy:
    """Probabilities of the options of one parameter after another; at first all are equally likely.

    An LSTM reads an embedding per choice made; each parameter has a linear head of its own on the state.
    Weights are made when a parameter is first seen, from a seed and its name, so the order does not matter.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._cell: nn.LSTMCell = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.LSTMCell, HIDDEN, HIDDEN, dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(seed_of(seed, "policy"))
        with torch.no_grad():
            for weight in self._cell.parameters():
                weight.uniform_(-(HIDDEN**-0.5), HIDDEN**-0.5, generator=generator)
        self._parts: dict[str, tuple[nn.Parameter, nn.Parameter, nn.Parameter]] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights made so far, float64."""
        yield from self._cell.parameters()
        for part in self._parts.values():
            yield from part

    def know(self, name: str, options: int) -> tuple[nn.Parameter, ...]:
        """Return the weights of a parameter, made now if it is new.

        Args:
            name: The parameter.
            options: Number of its values.
        """
        if name not in self._parts:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "embedding", name))
            embedding = torch.randn(options, HIDDEN, generator=generator, dtype=torch.float64)
            head = torch.zeros(options, HIDDEN, dtype=torch.float64)
            bias = torch.zeros(options, dtype=torch.float64)
            self._parts[name] = (nn.Parameter(embedding), nn.Parameter(head), nn.Parameter(bias))
        return self._parts[name]

    def log_probabilities(self, before: Sequence[Step], name: str) -> torch.Tensor:
        """Return the logarithms of the probabilities of a parameter's options.

        Args:
            before: What was chosen before, all of it known.
            name: A parameter that is known.
        """
        hidden = cell = torch.zeros(1, HIDDEN, dtype=torch.float64)
        for step in before:
            hidden, cell = self._cell(self._parts[step.name][0][step.choice][None], (hidden, cell))
        return self._head(name, hidden)

    def _head(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        _, head, bias = self._parts[name]
        return torch.log_softmax(head @ hidden[0] + bias, 0)

    def evaluate(self, steps: Sequence[Step]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of a sequence of choices, and the sum of the entropies met on the way.

        Args:
            steps: The choices, of parameters that are known.
        """
        hidden = cell = torch.zeros(1, HIDDEN, dtype=torch.float64)
        chosen = entropy = torch.zeros((), dtype=torch.float64)
        for step in steps:
            logs = self._head(step.name, hidden)
            chosen = chosen + logs[step.choice]
            entropy = entropy - (logs.exp() * logs).sum()
            hidden, cell = self._cell(self._parts[step.name][0][step.choice][None], (hidden, cell))
        return chosen, entropy


@dataclass
class _Learner:
    """A policy and how far it has come with the trials of a study."""

    policy: Policy
    optimizer: torch.optim.Adam
    optimized: set[str] = field(default_factory=set)
    learned: list[int] = field(default_factory=list)
    baseline: float | None = None
    scale: float = 0.0


class ReinforceSampler(BaseSampler):
    """Samples from a policy that learns from every finished trial; for one objective.

    Failed and running trials teach nothing. A pruned one does by its last intermediate value.
    """

    def __init__(self, seed: int | None = None, *, rate: float = 0.03, entropy: float = 0.02) -> None:
        """Make a sampler that may serve several studies.

        Args:
            seed: Seed of weights and draws; None for a random one.
            rate: Learning rate of Adam.
            entropy: Weight of the entropy bonus, beside advantages of about 1.
        """
        self._seed = random.SystemRandom().getrandbits(62) if seed is None else seed
        self._rate, self._entropy = rate, entropy
        self._forget()

    def _forget(self) -> None:
        self._learners: weakref.WeakKeyDictionary[Study, _Learner] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()  # a study's threads share the sampler

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was learned: it is learned again from the study's trials."""
        return {name: value for name, value in vars(self).items() if name not in {"_learners", "_lock"}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take options; policies come with the studies."""
        vars(self).update(state)
        self._forget()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: parameters are drawn one by one, in the order that the objective asks for them."""
        del study, trial
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing; raise ValueError for a study of several objectives."""
        del trial, search_space
        self._raise_error_if_multi_objective(study)
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter, given those that the trial has already.

        Args:
            study: A study of one objective.
            trial: The trial, with the parameters asked for before, in that order.
            param_name: Name of the parameter.
            param_distribution: Its values.

        Raises:
            ValueError: The study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        seed = seed_of(self._seed, "draw", trial.number, param_name)
        options = _options(param_distribution)
        if options is None:
            chance = RandomSampler(seed=seed % 2**32)
            return chance.sample_independent(study, trial, param_name, param_distribution)
        steps, key = _steps(trial), _key(param_name, param_distribution)
        with self._lock:
            policy = self._learner(study).policy
            for step in steps:
                policy.know(step.name, step.options)
            policy.know(key, len(options))
            with torch.no_grad():
                probabilities = policy.log_probabilities(steps, key).exp().tolist()
        return options[random.Random(seed).choices(range(len(options)), probabilities)[0]]

    def _learner(self, study: Study) -> _Learner:
        """Return the policy that all trials of the study which are finished by now have taught."""
        lessons = {t.number: t for t in study.get_trials(deepcopy=False) if _taught(t) is not None}
        numbers = sorted(lessons)
        learner = self._learners.get(study)
        if learner is None or numbers[: len(learner.learned)] != learner.learned:
            policy = Policy(self._seed)
            learner = _Learner(policy, torch.optim.Adam(policy.parameters(), lr=self._rate))
            self._learners[study] = learner
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        for number in numbers[len(learner.learned) :]:
            trial = lessons[number]
            drawn = [] if _GIVEN in trial.system_attrs else _steps(trial)
            self._learn(learner, drawn, sign * (_taught(trial) or 0.0))
            learner.learned.append(number)
        return learner

    def _learn(self, learner: _Learner, steps: Sequence[Step], reward: float) -> None:
        """Take one step along the gradient, where the policy drew something; and the moving averages."""
        if learner.baseline is None:
            learner.baseline = reward
            return
        advantage = reward - learner.baseline
        learner.baseline += (1 - _DECAY) * advantage
        learner.scale = (
            _DECAY * learner.scale + (1 - _DECAY) * advantage**2 if learner.scale else advantage**2
        )
        if not steps:
            return
        for step in steps:
            weights = learner.policy.know(step.name, step.options)
            if step.name not in learner.optimized:
                learner.optimizer.add_param_group({"params": list(weights)})
                learner.optimized.add(step.name)
        spread = math.sqrt(learner.scale) or 1.0
        learner.optimizer.zero_grad(set_to_none=True)
        loss(learner.policy, steps, advantage / spread, self._entropy).backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()


def loss(policy: Policy, steps: Sequence[Step], advantage: float, entropy: float) -> torch.Tensor:
    """Return what to descend: its gradient is minus that of the module's formula.

    Args:
        policy: The policy; it knows all parameters of the steps.
        steps: What was chosen.
        advantage: Reward less baseline.
        entropy: Weight of the entropy bonus.
    """
    chosen, spread = policy.evaluate(steps)
    return -(advantage * chosen + entropy * spread)


def _taught(trial: FrozenTrial) -> float | None:
    """Return the value that a trial teaches; None if it has none."""
    value: float | None = None
    if trial.state == TrialState.COMPLETE:
        value = trial.value
    elif trial.state == TrialState.PRUNED and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    return value if value is not None and math.isfinite(value) else None


def _steps(trial: FrozenTrial) -> list[Step]:
    """Return a trial's parameters as choices, in the order asked; without those drawn at random."""
    steps = []
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        options = _options(distribution)
        if options is not None:
            steps.append(Step(_key(name, distribution), len(options), _index(options, distribution, value)))
    return steps


def _options(distribution: BaseDistribution) -> Sequence[Any] | None:
    """Return the values of a parameter in order; None if they are too many to list."""
    if isinstance(distribution, CategoricalDistribution):
        options: Sequence[Any] = distribution.choices
    elif isinstance(distribution, IntDistribution):
        options = range(distribution.low, distribution.high + 1, distribution.step)
    elif isinstance(distribution, optuna.distributions.FloatDistribution) and distribution.step:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        if count > MOST_OPTIONS:
            return None
        options = [min(distribution.low + i * distribution.step, distribution.high) for i in range(count)]
    else:
        return None
    return options if len(options) <= MOST_OPTIONS else None


def _index(options: Sequence[Any], distribution: BaseDistribution, value: Any) -> int:
    """Return the place of a value, which for floats may differ in the last bits."""
    if isinstance(distribution, CategoricalDistribution):
        return int(distribution.to_internal_repr(value))
    return min(range(len(options)), key=lambda i: abs(options[i] - value))


def _key(name: str, distribution: BaseDistribution) -> str:
    """Return what the policy knows a parameter by: its name and its values."""
    values = hashlib.sha256(distribution_to_json(distribution).encode()).hexdigest()[:16]
    return f"{name} {values}"
