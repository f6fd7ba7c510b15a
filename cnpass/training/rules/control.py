"""If, Loop and Scan. A subgraph's captured outer tensors follow the node's own inputs."""

from __future__ import annotations

import torch

from cnpass.training.rules.registry import Kernel, Node, as_ints, rule


@rule("If", structural={0})
def if_(node: Node) -> Kernel:
    """If: run the branch that the condition names."""
    then, other = node.blocks["then_branch"], node.blocks["else_branch"]
    split = len(then.captures)

    def kernel(condition: torch.Tensor, *captured: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if bool(condition.item()):
            return then((), captured[:split])
        return other((), captured[split:])

    return kernel


@rule("Loop", structural={0, 1})
def loop(node: Node) -> Kernel:
    """Loop: carried states, then scan outputs stacked along a new first axis."""
    body = node.blocks["body"]
    arity = len(node.present)

    def kernel(*tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        limit = None if tensors[0] is None else as_ints(tensors[0])[0]
        running = tensors[1] is None or bool(tensors[1].item())
        carried = [t for t in tensors[2:arity] if t is not None]
        captured = [t for t in tensors[arity:] if t is not None]
        scanned: list[list[torch.Tensor]] = [[] for _ in range(node.outputs - len(carried))]
        step = 0
        while running and (limit is None or step < limit):
            results = body((torch.tensor(step), torch.tensor(True), *carried), captured)
            running = bool(results[0].item())
            carried = list(results[1 : len(carried) + 1])
            for column, value in zip(scanned, results[len(carried) + 1 :], strict=True):
                column.append(value)
            step += 1
        # Of a scan output that no step produced only the first axis is known: it is empty.
        return (*carried, *(torch.stack(c) if c else torch.zeros(0) for c in scanned))

    return kernel


@rule("Scan", since=9)
def scan(node: Node) -> Kernel:
    """Scan: states, then one output row per step, each axis and direction as the attributes say."""
    body = node.blocks["body"]
    arity, count = len(node.present), node.integer("num_scan_inputs", 1)
    states = arity - count
    in_axes, out_axes = node.integers("scan_input_axes"), node.integers("scan_output_axes")
    in_back, out_back = node.integers("scan_input_directions"), node.integers("scan_output_directions")

    def kernel(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        carried, captured = list(tensors[:states]), tensors[arity:]
        columns = []
        for i, sequence in enumerate(tensors[states:arity]):
            rows = list(sequence.unbind(in_axes[i] if in_axes else 0))
            columns.append(rows[::-1] if in_back and in_back[i] else rows)
        outputs: list[list[torch.Tensor]] = [[] for _ in range(node.outputs - states)]
        for row in zip(*columns, strict=True):
            results = body((*carried, *row), captured)
            carried = list(results[:states])
            for column, value in zip(outputs, results[states:], strict=True):
                column.append(value)
        stacked = [
            torch.stack(c[::-1] if out_back and out_back[i] else c, out_axes[i] if out_axes else 0)
            for i, c in enumerate(outputs)
        ]
        return (*carried, *stacked)

    return kernel
