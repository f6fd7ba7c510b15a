"""Nodes that are ready to run, and running them on tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cnpass.errors import ModelError
from cnpass.training.rules import Kernel, Rule

MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What kernels and their builders raise where a node's attributes or inputs are not what it should have."""


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        label: Node name, or its first output where it has none; for error messages.
        kernel: What to call.
        inputs: Tensor names, the captured tensors of subgraphs last; "" for an absent input.
        outputs: Tensor names.
        rule: The rule that made the kernel.
        free: Names that nothing reads after this step.
        roots: Of a step on constants alone, those that its result depends on; it runs only if one is trained.
    """

    label: str
    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: Rule
    free: tuple[str, ...] = ()
    roots: frozenset[str] = frozenset()


class Run:
    """Executes steps on tensors by name.

    Attributes:
        steps: Those that lead to what is kept.
        kept: Names of the tensors that they are run for.
    """

    def __init__(self, steps: Sequence[Step], keep: Iterable[str]) -> None:
        self.kept = tuple(keep)
        self.steps = _with_lifetimes(steps, set(self.kept))

    def passing_by(self, sources: Mapping[str, str]) -> Run:
        """Return the same with tensors that stand for others, by the names of these."""

        def source(name: str) -> str:
            while name in sources:
                name = sources[name]
            return name

        steps = [replace(step, inputs=tuple(map(source, step.inputs))) for step in self.steps]
        return Run(steps, map(source, self.kept))

    def __call__(self, env: dict[str, torch.Tensor | None]) -> None:
        """Run the steps, each on what it finds under its names, and leave there what is not freed.

        Raises:
            ModelError: A node cannot run on its tensors, or reads what nothing writes; the text names it.
        """
        for step in self.steps:
            tensors = [look_up(env, name, f"node {step.label}") if name else None for name in step.inputs]
            _align(tensors, step.rule)
            try:
                result = step.kernel(*tensors)
            except MISFITS as error:
                raise ModelError(f"node {step.label}: {first_line(error)}") from error
            if isinstance(result, torch.Tensor):
                env[step.outputs[0]] = result
            else:
                env.update(zip(step.outputs, result, strict=False))
            for name in step.free:
                env.pop(name, None)


def look_up(env: Mapping[str, torch.Tensor | None], name: str, reader: str) -> torch.Tensor | None:
    """Return the tensor that ``reader`` wants, None where a node left it out.

    Raises:
        ModelError: Nothing wrote it.
    """
    try:
        return env[name]
    except KeyError:
        raise ModelError(f"{reader} reads {name!r}, which nothing writes") from None


def first_line(error: Exception) -> str:
    """Return what an error says, as far as it fits into one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _align(tensors: list[torch.Tensor | None], rule: Rule) -> None:
    """Bring a node's data to its accelerator; shapes and indices stay on the CPU, where they are read."""
    single = [t for t in tensors if isinstance(t, torch.Tensor)]  # sequences are where their parts are
    device = next((t.device for t in single if t.device.type != "cpu"), None)
    if device is None:
        return
    for slot, tensor in enumerate(tensors):
        if isinstance(tensor, torch.Tensor) and tensor.device != device and slot not in rule.structural:
            tensors[slot] = tensor.to(device)


def _with_lifetimes(steps: Sequence[Step], keep: set[str]) -> list[Step]:
    """Drop steps that no kept tensor needs, and note where every intermediate tensor is read last."""
    needed, chosen = set(keep), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            made = {o for o in step.outputs if o}
            last = {i for i in step.inputs if i and i not in needed}
            needed.update(i for i in step.inputs if i)
            chosen.append((step, last, made))
    produced = {o for _, _, made in chosen for o in made}
    result = []
    for step, last, made in reversed(chosen):
        unread = {o for o in made if o not in needed}
        free = tuple(sorted((last & produced) | unread))
        result.append(Step(step.label, step.kernel, step.inputs, step.outputs, step.rule, free))
    return result
