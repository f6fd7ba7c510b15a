"""Training: what it changes, how it resumes, what it does when it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import UsageError
from cnpass.evaluation.montecarlo import VALIDATION_CHIPS_START
from cnpass.mapping import plan
from cnpass.progress import Progress, Task
from cnpass.runtime.devices import LogNormal
from cnpass.training import checkpoint
from cnpass.training.augmentation import augmentation
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples, samples_at_once
from cnpass.training.lift import Lifted, lift
from cnpass.training.objective import Objective
from cnpass.training.retrain import MAX_RETREATS, Problem, TrainOptions, train
from cnpass.training.validation import Validator

DEVICE = LogNormal(sigma=0.4)
CPU = torch.device("cpu")


def _split(count: int, seed: int) -> Split:
    """Four classes told apart by the brightest quadrant."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.normal(0, 0.5, (count, 1, 8, 8)).astype(np.float32)
    for i, label in enumerate(y):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return Split({"x": x}, y)


@pytest.fixture
def setting(convnet) -> Callable[[], tuple[Forward, Problem]]:
    """Makes a fresh module and its problem."""
    document = Document.from_proto(convnet)

    def fresh() -> tuple[Forward, Problem]:
        forward = Forward(lift(document))
        samples, val = _split(256, 0), _split(64, 1)
        train_samples = Samples.of(samples, ["x"], CPU)
        with torch.no_grad():
            clean = forward(train_samples)
        crossbars = Crossbars.of(plan(document), DEVICE, forward.module.weights)
        validator = Validator(
            Samples.of(val, ["x"], CPU),
            val.y,
            "top1",
            crossbars,
            0,
            range(VALIDATION_CHIPS_START, VALIDATION_CHIPS_START + 4),
        )
        objective, teacher = Objective.of("top1", clean), Forward(lift(document))
        return forward, Problem(train_samples, objective, clean, validator, crossbars, teacher)

    return fresh


OPTIONS = TrainOptions(epochs=8, batch=64, beta=1e-3, checks=4)


class _KilledError(Exception):
    pass


class _Countdown(Task):
    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise _KilledError


class _Killer(Progress):
    """Ends a training in the middle of an epoch, as a kill would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def task(self, *_: object, **__: object) -> nullcontext[Task]:
        return nullcontext(_Countdown(self.epochs))


def test_training_brings_accuracy_under_variation(setting) -> None:
    forward, problem = setting()
    result = train(forward, problem, replace(OPTIONS, epochs=40))
    assert result.first_score < 0.4
    assert result.score > 0.85
    assert problem.validator.score(forward) == result.score  # the best weights are left in the module
    assert result.epochs == 40
    assert not result.notes


def test_the_same_seed_gives_the_same_bits_and_another_does_not(setting) -> None:
    one, two, other = (train(*setting(), replace(OPTIONS, epochs=2, seed=seed)).weights for seed in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


ALL = replace(OPTIONS, levels=(0.5, 1.2), censor=1.0, clip_weights=1.5)


@pytest.mark.parametrize(("options", "killed_after"), [(OPTIONS, 1), (OPTIONS, 5), (ALL, 5)])
def test_a_resumed_training_ends_with_the_same_bits(
    setting, tmp_path, monkeypatch, options: TrainOptions, killed_after: int
) -> None:
    monkeypatch.setattr("cnpass.training.retrain._SAVE_EVERY", 0.0)
    whole = train(*setting(), options)
    path = tmp_path / "state.pt"
    with pytest.raises(_KilledError):
        train(*setting(), options, path=path, progress=_Killer(killed_after))
    assert checkpoint.load(path)["epoch"] == killed_after
    resumed = train(*setting(), options, path=path)
    assert resumed.score == whole.score
    assert resumed.history == whole.history
    for key, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[key]), key
    again = train(*setting(), options, path=path)
    assert all(torch.equal(again.weights[k], whole.weights[k]) for k in whole.weights)


def test_frozen_weights_keep_their_bytes(setting) -> None:
    forward, problem = setting()
    before = {k: w.detach().clone() for k, w in forward.module.weights.items()}
    result = train(forward, problem, replace(OPTIONS, beta=0.0), trained={"fc.weight"})
    assert set(result.weights) == {"fc.weight"}
    assert result.score > result.first_score
    for key, weight in forward.module.weights.items():
        assert torch.equal(weight, before[key]) == (key != "fc.weight")


def _gradients(setting, monkeypatch, **options: float) -> dict[str, np.ndarray]:
    """What the first and only step of a training goes by."""
    forward, problem = setting()
    keys, seen = list(forward.module.weights), []

    def record(weights: list[torch.Tensor], _: float) -> None:
        seen.append([weight.grad.double().numpy().copy() for weight in weights])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    train(forward, problem, replace(OPTIONS, epochs=1, batch=256, checks=0, **options))
    (gradients,) = seen
    return dict(zip(keys, gradients, strict=True))


@pytest.mark.parametrize(("beta", "k"), [(1e-2, 1.0), (1e-2, 2.0), (0.5, 0.5)])
def test_a_step_goes_by_the_gradient_of_the_penalty_as_well(
    setting, monkeypatch, beta: float, k: float
) -> None:
    plain = _gradients(setting, monkeypatch, beta=0.0, k=k)
    penalised = _gradients(setting, monkeypatch, beta=beta, k=k)
    forward, _ = setting()
    square = math.exp(0.4**2)
    norm = k / (math.sqrt(square) + 3 * math.sqrt((square - 1) * square))
    for key, weight in forward.module.weights.items():
        given = penalised[key] - plain[key]
        if "bias" in key:
            assert not given.any()
            continue
        w = weight.detach().double().numpy().reshape(len(weight), -1)
        w = w if w.shape[0] <= w.shape[1] else w.T
        expected = 4 * beta * (w @ w.T - norm**2 * np.eye(len(w))) @ w
        expected = expected if len(w) == len(weight) else expected.T
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(given, expected.reshape(given.shape), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_step_draws_as_many_chips_as_it_is_told(setting, monkeypatch, draws: int) -> None:
    drawn = []
    draw = Crossbars.draw
    monkeypatch.setattr(Crossbars, "draw", lambda *args: drawn.append(1) or draw(*args))
    train(*setting(), replace(OPTIONS, epochs=1, batch=256, checks=0, draws=draws))
    assert len(drawn) == draws + 1  # one for the loss of the weights that came in


def test_weights_without_a_matrix_are_not_penalised(setting, monkeypatch) -> None:
    options = replace(OPTIONS, epochs=1, checks=0)
    plain = train(*setting(), replace(options, beta=0.0)).weights
    penalised = train(*setting(), options).weights
    assert not all(torch.equal(penalised[key], plain[key]) for key in plain)
    monkeypatch.setattr(Lifted, "matrices", lambda *_: iter(()))  # as where bodies compute them
    found = train(*setting(), options).weights
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def _peak(weight: torch.Tensor) -> float:
    """The largest weight in root mean squares of its tensor, which clipping itself makes a little smaller."""
    return (weight.abs().max() / weight.square().mean().sqrt()).item()


def test_clipping_holds_analog_weights_together_and_leaves_digital_ones(setting) -> None:
    options = replace(OPTIONS, epochs=12, checks=0)
    free, clipped = (train(*setting(), replace(options, clip_weights=c)).weights for c in (None, 1.5))
    for key in ("conv1.weight", "conv2.weight", "fc.weight"):
        assert _peak(clipped[key]) < 1.7 < _peak(free[key])
    forward, problem = setting()
    before = {key: weight.detach().clone() for key, weight in forward.module.weights.items()}
    train(forward, problem, replace(options, epochs=1, clip_weights=1.1), trained={"fc.bias"})
    assert all(torch.equal(w, before[k]) for k, w in forward.module.weights.items() if k != "fc.bias")
    digital = replace(problem, crossbars=problem.crossbars.only({"conv1.weight"}))
    with torch.no_grad():
        forward.module.weights["fc.weight"][0, 0] = 100.0
    train(forward, digital, replace(options, epochs=1, clip_weights=1.1))
    assert forward.module.weights["fc.weight"][0, 0] > 99
    assert _peak(forward.module.weights["conv1.weight"]) < 1.3 < _peak(before["conv1.weight"])


def test_censoring_changes_what_is_trained_and_nothing_that_is_measured(setting) -> None:
    options = replace(OPTIONS, epochs=2)
    whole, far, near = (train(*setting(), replace(options, censor=c)) for c in (None, 50.0, 0.5))
    assert whole.first_score == far.first_score == near.first_score
    assert all(torch.equal(whole.weights[k], far.weights[k]) for k in whole.weights)
    assert not all(torch.equal(whole.weights[k], near.weights[k]) for k in whole.weights)


def test_no_better_weights_leave_those_that_came_in(setting) -> None:
    forward, problem = setting()
    train(forward, problem, replace(OPTIONS, epochs=20))
    before = {k: w.detach().clone() for k, w in forward.module.weights.items()}
    wrong = Samples(problem.samples.inputs, (problem.samples.labels + 1) % 4)
    result = train(forward, replace(problem, samples=wrong), replace(OPTIONS, epochs=3))
    assert result.score == result.first_score
    assert all(torch.equal(w, before[k]) for k, w in forward.module.weights.items())


def test_divergence_is_noticed_and_backed_off(setting) -> None:
    forward, problem = setting()
    result = train(forward, problem, replace(OPTIONS, epochs=6, rate=1e4, max_norm=1e9))
    assert 1 <= len(result.notes) <= MAX_RETREATS + 1
    assert "diverged in epoch" in result.notes[0]
    assert all(torch.isfinite(w).all() for w in result.weights.values())
    assert result.score >= result.first_score


def test_a_loss_of_nan_gives_up_in_the_end(setting) -> None:
    forward, problem = setting()
    broken = Samples((problem.samples.inputs[0] * torch.nan,), problem.samples.labels)
    result = train(forward, replace(problem, samples=broken), replace(OPTIONS, epochs=50))
    assert result.epochs == MAX_RETREATS + 1
    assert "given up" in result.notes[-1]


def test_a_damaged_or_foreign_checkpoint_is_refused(setting, tmp_path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="damaged"):
        train(*setting(), OPTIONS, path=path)
    torch.save({"epoch": Document}, path)  # a class is no plain value
    with pytest.raises(UsageError, match="damaged"):
        train(*setting(), OPTIONS, path=path)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        checkpoint.save(tmp_path / "missing" / "state.pt", {})


def test_validation_uses_the_numbered_chips_of_the_contract(setting, convnet, ort) -> None:
    import onnx.numpy_helper

    from cnpass.runtime.reference import program_weight

    forward, problem = setting()
    validator = replace(problem.validator, chips=range(VALIDATION_CHIPS_START, VALIDATION_CHIPS_START + 2))
    values = validator.values(forward)
    for chip, value in zip(validator.chips, values, strict=True):
        for tensor in convnet.graph.initializer:
            if tensor.name in validator.crossbars.streams:
                weight = forward.module.weights[tensor.name].detach().numpy()
                stream = validator.crossbars.streams[tensor.name]
                new = program_weight(weight, DEVICE, seed=0, stream=stream, chip=chip)
                tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
        val = _split(64, 1)
        assert value == np.mean(ort(convnet, [val.x])[0].argmax(1) == val.y)


def test_samples_run_at_once_as_memory_allows(setting, monkeypatch) -> None:
    forward, problem = setting()
    samples, figures = problem.samples, problem.validator.values(forward)
    assert samples_at_once(forward, samples) == len(samples)
    assert samples_at_once(replace(forward, rows=48), samples) == len(samples)
    assert samples_at_once(forward, samples.take(slice(2))) == 2
    largest = 4 * 6 * 8 * 8  # float32 [6, 8, 8]: what the first convolution gives of a sample
    for at_once, limit in ((10, 10 * largest), (9, 10 * largest - 1), (1, 1)):
        monkeypatch.setattr("cnpass.training.forward.LARGEST_TENSOR", limit)
        assert samples_at_once(forward, samples) == at_once
        assert problem.validator.values(forward) == figures


@pytest.mark.parametrize("rows", [1, 48])
def test_models_of_fixed_batch_run_in_their_batches(setting, rows: int) -> None:
    forward, problem = setting()
    samples = problem.samples.take(slice(100))
    whole = forward(samples)
    torch.testing.assert_close(Forward(forward.module, rows)(samples), whole, rtol=1e-4, atol=1e-5)


def test_objectives_without_labels_follow_the_clean_model() -> None:
    clean = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    near, far = clean + 0.01, -clean
    for metric in ("agreement", "ser"):
        objective = Objective.of(metric, clean)
        assert objective.follows_clean
        assert objective(clean, None, clean).item() == pytest.approx(0, abs=1e-6)
        assert objective(near, None, clean) < objective(far, None, clean)


def test_distillation_weighs_labels_and_the_clean_model() -> None:
    generator = torch.Generator().manual_seed(0)
    output, clean = torch.randn(2, 6, 5, generator=generator)
    labels = torch.arange(5).repeat(2)[:6]
    alone = Objective.of("top1", clean)(output, labels, None)
    distance = Objective.of("agreement", clean)(output, None, clean)
    both = Objective.of("top1", clean, distillation=0.3)
    assert both.follows_clean
    assert both(output, labels, clean).item() == pytest.approx(
        (0.7 * alone + 0.3 * distance).item(), rel=1e-5
    )


def test_probabilities_are_taken_as_such() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator), torch.arange(5).repeat(2)[:6]
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    probabilities = torch.softmax(logits, 1)
    for clean, output in ((logits, logits), (probabilities, probabilities), (probabilities.log(),) * 2):
        loss = Objective.of("top1", clean)(output, labels, None)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_augmented_training_asks_the_teacher_what_augmented_samples_are(setting) -> None:
    forward, problem = setting()
    flipped = replace(
        problem, objective=replace(problem.objective, distillation=0.5), augment=augmentation(["flip"])
    )
    index = torch.arange(32)
    batch, clean = flipped.batch(index, torch.Generator().manual_seed(0))
    original = problem.samples.inputs[0][:32]
    changed = (batch.inputs[0] != original).flatten(1).any(1)
    assert 5 < changed.sum() < 27
    assert torch.equal(batch.inputs[0][changed], original[changed].flip(3))
    torch.testing.assert_close(clean, forward(batch))
    plain, clean = flipped.batch(index)
    assert torch.equal(plain.inputs[0], original)
    assert torch.equal(clean, problem.clean[:32])


def test_training_ends_early_where_nothing_gets_better(setting) -> None:
    forward, problem = setting()
    train(forward, problem, replace(OPTIONS, epochs=20))
    wrong = Samples(problem.samples.inputs, (problem.samples.labels + 1) % 4)
    options = replace(OPTIONS, epochs=40, checks=20, patience=3)
    result = train(forward, replace(problem, samples=wrong), options)
    assert result.epochs < 40
    assert result.epochs > options.ramp * 40
    assert result.score == result.first_score


@dataclass
class _Scripted:
    """A validator whose figures are known beforehand."""

    scores: Iterator[float]

    def score(self, _: Forward) -> float:
        return next(self.scores)


def test_training_goes_on_while_its_checks_get_better_even_if_the_start_was_best(setting) -> None:
    forward, problem = setting()
    options = replace(OPTIONS, epochs=20, checks=20, patience=3, ramp=0.0)
    rising = (0.9, *(0.5 + number / 100 for number in range(20)))
    result = train(forward, replace(problem, validator=_Scripted(iter(rising))), options)
    assert result.epochs == 20
    assert result.score == 0.9
    stalled = (0.9, *(0.5 + min(number, 7) / 100 for number in range(20)))
    result = train(forward, replace(problem, validator=_Scripted(iter(stalled))), options)
    assert result.epochs == 8 + 3
