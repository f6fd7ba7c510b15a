"""The policy's gradient is that of the expected reward, and the sampler keeps Optuna's contract."""

from __future__ import annotations

import pickle  # noqa: TID251 (that it can be is what is tested)
from itertools import product

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial

from cnpass.placement.reinforce import Policy, ReinforceSampler, Step, loss

OPTIONS = (2, 3, 2)
REWARDS = dict(
    zip(product(*map(range, OPTIONS)), np.random.default_rng(0).normal(size=12).tolist(), strict=True)
)


class TestContract(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's own suites.

    Those for samplers of several objectives do not apply, since a reward is one number; nor does the one for
    relative sampling: parameters are drawn one after another as an objective asks for them, and there is no
    space that they would be drawn from all at once.
    """

    @pytest.fixture
    def sampler(self):
        return lambda: ReinforceSampler(seed=0)


def _steps(choices) -> list[Step]:
    return [Step(str(i), n, c) for i, (n, c) in enumerate(zip(OPTIONS, choices, strict=True))]


@pytest.fixture
def policy() -> Policy:
    """A policy over three parameters, with heads that are not zero."""
    made = Policy(3)
    generator = torch.Generator().manual_seed(1)
    for step in _steps((0, 0, 0)):
        _, head, bias = made.know(step.name, step.options)
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=generator, dtype=torch.float64) * 0.5)
            bias.copy_(torch.randn(bias.shape, generator=generator, dtype=torch.float64) * 0.5)
    return made


def _probability(policy: Policy, choices) -> float:
    with torch.no_grad():
        return float(policy.evaluate(_steps(choices))[0].exp())


def _expectation(policy: Policy, entropy: float) -> float:
    """Expected reward plus the weighted entropy of the whole sequence, summed over all sequences."""
    probabilities = {choices: _probability(policy, choices) for choices in REWARDS}
    return sum(p * (REWARDS[c] - entropy * np.log(p)) for c, p in probabilities.items())


def test_probabilities_of_all_sequences_sum_to_one(policy) -> None:
    assert sum(_probability(policy, choices) for choices in REWARDS) == pytest.approx(1, abs=1e-12)


def test_one_parameter_after_another_gives_the_probability_of_the_sequence(policy) -> None:
    for choices in REWARDS:
        steps = _steps(choices)
        logs = [policy.log_probabilities(steps[:i], s.name)[s.choice].item() for i, s in enumerate(steps)]
        assert np.exp(sum(logs)) == pytest.approx(_probability(policy, choices), rel=1e-12)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_gradient_is_that_of_the_expected_reward(entropy, baseline, policy) -> None:
    """The mean of what trials teach, against finite differences; the baseline changes nothing on average.

    The entropies met on the way have the sequence's entropy as their mean, but their gradient does not see
    that the way itself changes, so the bonus is compared at the last parameter's weights, where it does not.
    """
    weights = list(policy.parameters())
    for choices, reward in REWARDS.items():
        (_probability(policy, choices) * loss(policy, _steps(choices), reward - baseline, entropy)).backward()
    last = {id(weight) for weight in policy.know("2", OPTIONS[2])[1:]}
    checked = 0
    draw = np.random.default_rng(2)
    for weight in weights:
        if entropy and id(weight) not in last:
            continue
        flat = weight.detach().view(-1)
        gradient = torch.zeros_like(flat) if weight.grad is None else weight.grad.view(-1)
        for place in draw.choice(len(flat), min(len(flat), 12), replace=False):
            held = flat[place].item()
            sides = []
            for step in (1e-5, -1e-5):
                flat[place] = held + step
                sides.append(_expectation(policy, entropy))
            flat[place] = held
            expected = (sides[0] - sides[1]) / 2e-5
            assert -gradient[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)
            checked += abs(expected) > 1e-6
    assert checked > 10


def test_a_single_softmax_has_the_gradient_of_the_textbook() -> None:
    """Of the logits: advantage times (one for the choice, less the probabilities), and the entropy's."""
    policy = Policy(0)
    _, _, bias = policy.know("x", 4)
    with torch.no_grad():
        bias.copy_(torch.tensor([0.1, -0.4, 0.9, 0.0]))
    loss(policy, [Step("x", 4, 2)], 1.7, 0.2).backward()
    logits = bias.detach().numpy()
    p = np.exp(logits) / np.exp(logits).sum()
    entropy = -(p * np.log(p)).sum()
    expected = 1.7 * (np.eye(4)[2] - p) - 0.2 * p * (np.log(p) + entropy)
    np.testing.assert_allclose(-bias.grad.numpy(), expected, rtol=1e-12)


def _objective(trial: optuna.Trial) -> float:
    size = trial.suggest_int("size", 0, 5)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    return size * (2 if kind == "b" else 1) + trial.suggest_float("x", 0, 0.1)


def _asked(study: optuna.Study) -> list[dict]:
    return [trial.params for trial in study.get_trials(deepcopy=False)]


def test_it_learns() -> None:
    for direction, sign in (("maximize", 1), ("minimize", -1)):
        study = optuna.create_study(direction=direction, sampler=ReinforceSampler(seed=1))
        study.optimize(lambda t, s=sign: s * _objective(t), n_trials=120)
        values = [sign * t.value for t in study.trials]
        assert np.mean(values[-30:]) > np.mean(values[:30]) + 2


def _probabilities(sampler: ReinforceSampler, study: optuna.Study) -> np.ndarray:
    """Of the options of the one parameter that a study has; nothing came before it."""
    policy = sampler._learner(study).policy
    (name,) = policy._parts
    return policy.log_probabilities([], name).detach().exp().numpy()


def test_every_trial_moves_the_policy_as_the_formula_says() -> None:
    """One parameter: a softmax over biases. Averages, gradient and Adam (D. Kingma, J. Ba, 2015) by hand."""
    rate, entropy, decay, options = 0.05, 0.3, 0.9, 4
    sampler = ReinforceSampler(seed=1, rate=rate, entropy=entropy)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    random = np.random.default_rng(0)
    bias, first, second = np.zeros((3, options))
    baseline = scale = 0.0
    for number in range(25):
        choice, reward = int(random.integers(options)), float(random.normal(3.0, 2.0))
        distributions = {"c": IntDistribution(0, options - 1)}
        study.add_trial(create_trial(params={"c": choice}, distributions=distributions, value=reward))
        learner = sampler._learner(study)
        if number == 0:
            baseline = reward
            continue
        advantage = reward - baseline
        baseline = decay * baseline + (1 - decay) * reward
        scale = advantage**2 if number == 1 else decay * scale + (1 - decay) * advantage**2
        p = np.exp(bias) / np.exp(bias).sum()
        spread = -(p * np.log(p)).sum()
        upwards = advantage / np.sqrt(scale) * (np.eye(options)[choice] - p)
        upwards += entropy * -p * (np.log(p) + spread)
        first = 0.9 * first + 0.1 * upwards
        second = 0.999 * second + 0.001 * upwards**2
        steps = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
        bias = bias + rate * steps
        expected = np.exp(bias) / np.exp(bias).sum()
        np.testing.assert_allclose(_probabilities(sampler, study), expected, rtol=1e-9)
        assert learner.baseline == pytest.approx(baseline)
    assert expected.max() - expected.min() > 0.1  # it has come some way


def test_given_parameters_move_the_baseline_alone() -> None:
    sampler = ReinforceSampler(seed=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for value in (0.0, 1.0, 2.0):
        study.enqueue_trial({"size": 3})
        trial = study.ask()
        assert trial.suggest_int("size", 0, 5) == 3
        study.tell(trial, value)
    learner = sampler._learner(study)
    assert learner.learned == [0, 1, 2]
    assert learner.baseline == pytest.approx(0.9 * (0.9 * 0.0 + 0.1 * 1.0) + 0.1 * 2.0)
    assert not learner.optimized
    trial = study.ask()
    trial.suggest_int("size", 0, 5)
    study.tell(trial, 5.0)
    assert _probabilities(sampler, study)[trial.params["size"]] > 1 / 6


def test_storage_and_restarts_make_no_difference(tmp_path) -> None:
    whole = optuna.create_study(direction="maximize", sampler=ReinforceSampler(seed=5))
    whole.optimize(_objective, n_trials=20)
    url = f"sqlite:///{tmp_path / 's.db'}"
    for _ in range(4):
        study = optuna.create_study(
            storage=url,
            study_name="s",
            direction="maximize",
            load_if_exists=True,
            sampler=ReinforceSampler(seed=5),
        )
        study.optimize(_objective, n_trials=5)
    assert _asked(study) == _asked(whole)
    other = optuna.create_study(direction="maximize", sampler=ReinforceSampler(seed=6))
    other.optimize(_objective, n_trials=20)
    assert _asked(other) != _asked(whole)


def test_threads_share_the_sampler() -> None:
    study = optuna.create_study(sampler=ReinforceSampler(seed=0))
    study.optimize(lambda t: sum(t.suggest_int(f"n{i}", 0, 5) for i in range(4)), n_trials=60, n_jobs=8)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 60


def test_a_pickled_sampler_goes_on_as_it_would_have() -> None:
    study = optuna.create_study(sampler=ReinforceSampler(seed=3, rate=0.1, entropy=0.01))
    study.optimize(_objective, n_trials=20)
    trials = []
    copy = pickle.loads(pickle.dumps(study.sampler))  # noqa: S301 (our own)
    for sampler in (study.sampler, copy):
        other = optuna.create_study(sampler=sampler)
        other.add_trials(study.trials)
        other.optimize(_objective, n_trials=5)
        trials.append([trial.params for trial in other.trials[20:]])
    assert trials[0] == trials[1]


def test_one_sampler_serves_several_studies() -> None:
    shared = ReinforceSampler(seed=5)
    studies = [optuna.create_study(direction=d, sampler=shared) for d in ("maximize", "minimize")]
    for _ in range(10):
        for study in studies:
            study.optimize(_objective, n_trials=1)
    for study in studies:
        alone = optuna.create_study(direction=study.direction, sampler=ReinforceSampler(seed=5))
        alone.optimize(_objective, n_trials=10)
        assert _asked(study) == _asked(alone)


def test_the_order_in_which_trials_finish_makes_no_difference() -> None:
    nexts = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        study = optuna.create_study(direction="maximize", sampler=ReinforceSampler(seed=5))
        study.optimize(_objective, n_trials=4)
        running = [study.ask() for _ in order]
        values = {trial.number: _objective(trial) for trial in running}
        for place in order:
            study.tell(running[place], values[running[place].number])
            study.ask().suggest_int("size", 0, 5)  # looks at the study in between
        nexts.append([_objective(trial) for trial in [study.ask() for _ in range(5)]])
    assert nexts[0] == nexts[1]


def _trial(**more) -> optuna.trial.FrozenTrial:
    distributions = {"size": IntDistribution(0, 5), "kind": CategoricalDistribution(["a", "b"])}
    return create_trial(params={"size": 3, "kind": "b"}, distributions=distributions, **more)


def test_failed_and_running_trials_teach_nothing_and_pruned_ones_what_they_reported() -> None:
    without = ReinforceSampler(seed=2)
    study = optuna.create_study(direction="maximize", sampler=without)
    study.add_trials(
        [
            _trial(value=1.0),
            _trial(state=TrialState.FAIL),
            _trial(state=TrialState.RUNNING),
            _trial(state=TrialState.PRUNED),
            _trial(value=float("inf")),
        ]
    )
    assert without._learner(study).learned == [0]
    study.add_trial(_trial(state=TrialState.PRUNED, intermediate_values={3: 0.5, 4: 0.2}))
    study.add_trial(_trial(value=0.9))
    assert without._learner(study).learned == [0, 5, 6]
    alike = optuna.create_study(direction="maximize")
    alike.add_trials([_trial(value=1.0), _trial(value=0.2), _trial(value=0.9)])
    pairs = zip(
        without._learner(study).policy.parameters(),
        without._learner(alike).policy.parameters(),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "distribution",
    [IntDistribution(0, 10**6), FloatDistribution(0, 1), FloatDistribution(0, 1, step=0.001)],
)
def test_what_has_too_many_values_is_drawn_at_random_and_repeatably(distribution) -> None:
    drawn = []
    for _ in range(2):
        study = optuna.create_study(sampler=ReinforceSampler(seed=9))
        for _ in range(8):
            study.tell(study.ask({"x": distribution}), 1.0)
        drawn.append(_asked(study))
    assert drawn[0] == drawn[1]
    assert len({params["x"] for params in drawn[0]}) > 4
