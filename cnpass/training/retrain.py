"""Training under variation: injection along a ramp of strength, the Lipschitz penalty, early best.

Every epoch draws its order and its chips from seeds of its own, and every check looks at the same validation
chips, so a training that was interrupted and resumed ends with the same bits as one that was not (on a CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cnpass.progress import Progress, Task
from cnpass.runtime.copies import SINGLE
from cnpass.training import checkpoint, lipschitz
from cnpass.training.augmentation import Augmentation
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples
from cnpass.training.objective import Objective
from cnpass.training.schedule import LEVELS, RATE, one_cycle, ramp, seed_of
from cnpass.training.validation import Validator

MAX_RETREATS = 4
"""Times that a diverging training goes back to its best weights before it is given up."""
_RETREAT_FACTOR = 0.3
_EXPLODED = 20.0
"""A mean loss above so many times that of the weights that came in counts as divergence."""
FEWEST_PER_DRAW = 8
"""Samples per chip of a training step."""
_FIRST_BATCHES = 4
_SAVE_EVERY = 5.0
"""Seconds between checkpoints, at least."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: Passes over the training samples.
        batch: Samples per step; a small rest is spread over the batches.
        draws: Chips that each step draws, its samples being divided among them; fewer where a chip would have
            less than `FEWEST_PER_DRAW`.
        rate: Peak learning rate of Adam.
        levels: Strengths of variation, climbed in equal steps, as fractions of the device model's own.
        ramp: Fraction of the training at which the last level begins.
        censor: Standard deviations above which deviates of the variation are censored; None for nowhere.
        clip_weights: Largest analog weight after every step, in standard deviations of its tensor; None for
            no limit.
        beta: Weight of the Lipschitz penalty.
        k: Bound per layer that the penalty aims at.
        max_norm: Largest norm of the gradient.
        checks: How often validation is looked at, for the best weights; 0 for never, which keeps the last.
        patience: Checks in a row, at full variation, none of them better than one before, that end the
            training.
        seed: Seed of order and variation.
    """

    epochs: int
    batch: int = 128
    draws: int = 1
    rate: float = RATE
    levels: tuple[float, ...] = LEVELS
    ramp: float = 0.4
    censor: float | None = None
    clip_weights: float | None = None
    beta: float = 0.0
    k: float = 1.0
    max_norm: float = 5.0
    checks: int = 12
    patience: int = 5
    seed: int = 0

    @property
    def ends_real(self) -> bool:
        """Whether the variation is in the end the device model's own."""
        return self.levels[-1] == 1 and self.censor is None


Variant = Callable[[Forward, torch.Generator], tuple[Forward, Mapping[str, torch.Tensor]]]
"""Draws, for one step, a part of the model, with tensors that stand in for digital weights, by key."""


@dataclass(frozen=True)
class Problem:
    """What to train on.

    Attributes:
        samples: Training samples.
        objective: The task loss.
        clean: The clean model's first output on them, where the objective follows that.
        validator: The figure that chooses the best weights.
        crossbars: What varies.
        teacher: The clean model, for samples that are augmented.
        augment: Changes the samples of each step; None leaves them as they are.
        variant: Draws what each step trains; None for the model as it is.
    """

    samples: Samples
    objective: Objective
    clean: torch.Tensor
    validator: Validator
    crossbars: Crossbars
    teacher: Forward
    augment: Augmentation | None = None
    variant: Variant | None = None

    def batch(
        self, index: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[Samples, torch.Tensor | None]:
        """Return samples, augmented if a generator is given, and the clean model's output if it matters."""
        batch = self.samples.take(index)
        augment = self.augment if generator is not None else None
        if augment is not None and generator is not None:
            batch = augment(batch, generator)
        if not self.objective.follows_clean:
            return batch, None
        if augment is None:
            return batch, self.clean[index]
        with torch.no_grad():
            return batch, self.teacher(batch)


@dataclass
class TrainResult:
    """What training came to.

    Attributes:
        weights: The best weights by key, on the CPU.
        score: Their mean figure on the validation chips; minus infinity if nobody looked.
        first_score: That of the weights that came in.
        epochs: Epochs trained.
        history: One entry per check: epoch, loss, score, rate.
        notes: Divergence and what was done about it.
    """

    weights: dict[str, torch.Tensor]
    score: float
    first_score: float
    epochs: int
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def train(
    forward: Forward,
    problem: Problem,
    options: TrainOptions,
    *,
    trained: Collection[str] | None = None,
    path: Path | None = None,
    progress: Progress | None = None,
    title: str = "training",
) -> TrainResult:
    """Train weights and leave the best of them in the module.

    Args:
        forward: The model.
        problem: What to train on.
        options: How.
        trained: Keys of the weights to train; the others stay as they are, bit for bit. None for all.
        path: Checkpoint file; an existing one is gone on from.
        progress: Told what happens.
        title: What this training is called there.

    Returns:
        The best weights on the validation chips; those that came in, if nothing was better.
    """
    trainer = _Trainer(forward, problem, options, trained, path)
    progress = progress or Progress()
    with progress.task(title, options.epochs, done=trainer.epoch) as task:
        trainer.run(task)
    for note in trainer.notes:
        progress.warn(note)
    return trainer.result()


class _Trainer:
    def __init__(
        self,
        forward: Forward,
        problem: Problem,
        options: TrainOptions,
        trained: Collection[str] | None,
        path: Path | None,
    ) -> None:
        self.forward, self.problem, self.options, self.path = forward, problem, options, path
        weights = forward.module.weights
        self.keys = [key for key in weights if trained is None or key in trained]
        for key, weight in weights.items():
            weight.requires_grad_(key in self.keys)
        crossbars = problem.crossbars
        self.norms = {
            key: lipschitz.target_norm(crossbars.device, options.k, crossbars.copies.get(key, SINGLE).count)
            for key in crossbars.streams
        }
        self.optimizer = self._optimizer()
        self.epoch = 0
        self.scale = 1.0
        self.retreats = 0
        self.first_loss = math.inf
        self.best: dict[str, torch.Tensor] = {}
        self.score = self.first_score = -math.inf
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.saved = 0.0
        state = checkpoint.load(path) if path else None
        if state is None:
            if options.checks:
                self.first_score = self.score = problem.validator.score(forward)
            self.first_loss = self._loss_of_start()
            self.best = self._weights()
        else:
            self._restore(state)

    def _optimizer(self) -> torch.optim.Adam:
        weights = self.forward.module.weights
        return torch.optim.Adam([weights[key] for key in self.keys], lr=self.options.rate)

    def run(self, task: Task) -> None:
        """Train until the last epoch, or until training is given up."""
        while self.epoch < self.options.epochs and self.retreats <= MAX_RETREATS and not self._settled():
            loss = self._epoch()
            self.epoch += 1
            task.advance()
            if not self._sane(loss):
                self._retreat(loss)
            elif self._due():
                self._check(loss)
                task.describe(f"validation {self.score:.4g}")
            self._save(final=False)
        if self.options.checks or self.retreats > MAX_RETREATS:
            self._load(self.best)
        else:
            self.best = self._weights()
        self._save(final=True)

    def _epoch(self) -> float:
        """Train one epoch; return its mean loss."""
        samples, options = self.problem.samples, self.options
        order = torch.Generator().manual_seed(seed_of(options.seed, "order", self.epoch))
        chips = torch.Generator().manual_seed(seed_of(options.seed, "noise", self.epoch, self.retreats))
        batches = max(1, round(len(samples) / options.batch))
        device = samples.inputs[0].device
        total = 0.0
        for step, index in enumerate(torch.randperm(len(samples), generator=order).tensor_split(batches)):
            done = (self.epoch + step / batches) / options.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = options.rate * self.scale * one_cycle(done)
            strength = ramp(done, options.levels, options.ramp)
            loss = self._step(index.to(device), chips, strength)
            total += loss / batches
            if not math.isfinite(loss):
                return math.nan
        return total

    def _step(self, index: torch.Tensor, chips: torch.Generator, strength: float) -> float:
        problem, options, module = self.problem, self.options, self.forward.module
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in index.tensor_split(max(1, min(options.draws, len(index) // FEWEST_PER_DRAW))):
            batch, clean = problem.batch(part, chips)
            weights = problem.crossbars.draw(module.weights, chips, strength, options.censor)
            forward = self.forward
            if problem.variant is not None:
                forward, stand_ins = problem.variant(forward, chips)
                weights.update(stand_ins)
            loss = problem.objective(forward(batch, weights), batch.labels, clean)
            loss = loss * (len(part) / len(index))
            if loss.requires_grad:  # a variant may use none of the weights that are trained
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if options.beta and not self.norms.keys().isdisjoint(self.keys):
            layers = module.matrices(self.norms)
            penalties = [lipschitz.penalty([matrix], self.norms[layer.key]) for layer, matrix in layers]
            if penalties:  # weights that only bodies multiply by have no matrix here
                (options.beta * torch.stack(penalties).sum()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([module.weights[key] for key in self.keys], options.max_norm)
        self.optimizer.step()
        if options.clip_weights is not None:
            problem.crossbars.clip(module.weights, self.keys, options.clip_weights)
        return total

    def _sane(self, loss: float) -> bool:
        """Tell whether the last epoch went well."""
        finite = math.isfinite(loss) and all(bool(torch.isfinite(w).all()) for w in self._weights().values())
        return finite and loss <= _EXPLODED * self.first_loss

    def _loss_of_start(self) -> float:
        """Return the largest loss of the weights that came in on a few chips, at least 1."""
        problem, weights = self.problem, self.forward.module.weights
        chips = torch.Generator().manual_seed(seed_of(self.options.seed, "start"))
        total = 0.0
        with torch.no_grad():
            for number in range(_FIRST_BATCHES):
                first = number * self.options.batch
                if first >= len(problem.samples):
                    break
                index = torch.arange(first, min(first + self.options.batch, len(problem.samples)))
                index = index.to(problem.samples.inputs[0].device)
                batch, clean = problem.batch(index)
                drawn = problem.crossbars.draw(weights, chips)
                loss = problem.objective(self.forward(batch, drawn), batch.labels, clean)
                total = max(total, float(loss))
        return max(total, 1.0) if math.isfinite(total) else 1.0

    def _retreat(self, loss: float) -> None:
        """Go back to the best weights and on with a smaller rate."""
        self.retreats += 1
        self.scale *= _RETREAT_FACTOR
        self._load(self.best)
        self.optimizer = self._optimizer()
        what = f"training diverged in epoch {self.epoch} (loss {loss:.3g})"
        given_up = self.retreats > MAX_RETREATS
        self.notes.append(
            f"{what} and was given up; the best weights so far are used"
            if given_up
            else f"{what}; went on from the best weights at {self.scale:.2g} of the learning rate"
        )

    def _due(self) -> bool:
        """Tell whether validation is looked at after this epoch: at even distances, and at the end."""
        if not self.options.checks:
            return False
        every = max(1, self.options.epochs // self.options.checks)
        return self.epoch % every == 0 or self.epoch == self.options.epochs

    def _check(self, loss: float) -> None:
        score = self.problem.validator.score(self.forward)
        self.history.append({"epoch": self.epoch, "loss": loss, "score": score, "scale": self.scale})
        if score > self.score:
            self.score, self.best = score, self._weights()

    def _settled(self) -> bool:
        """Tell whether the checks at full variation have brought nothing better for long enough.

        They are compared with each other alone: weights that are good when they come in get worse while the
        rate is high, and better only when it falls.
        """
        ramped, patience = self.options.ramp * self.options.epochs, self.options.patience
        scores = [check["score"] for check in self.history if check["epoch"] > ramped]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def _weights(self) -> dict[str, torch.Tensor]:
        weights = self.forward.module.weights
        return {key: weights[key].detach().cpu().clone() for key in self.keys}

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        present = self.forward.module.weights
        with torch.no_grad():
            for key, value in weights.items():
                present[key].copy_(value)

    def _save(self, *, final: bool) -> None:
        now = time.monotonic()
        if self.path is None or (not final and now - self.saved < _SAVE_EVERY):
            return
        self.saved = now
        checkpoint.save(
            self.path,
            {
                "epoch": self.epoch,
                "weights": self._weights(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "score": self.score,
                "first_score": self.first_score,
                "first_loss": self.first_loss,
                "scale": self.scale,
                "retreats": self.retreats,
                "history": self.history,
                "notes": self.notes,
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._load(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("epoch", "best", "score", "first_score", "first_loss", "scale", "retreats"):
            setattr(self, name, state[name])
        self.history, self.notes = list(state["history"]), list(state["notes"])

    def result(self) -> TrainResult:
        """Return the best weights and how they were found."""
        return TrainResult(self.best, self.score, self.first_score, self.epoch, self.history, self.notes)
