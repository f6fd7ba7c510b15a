"""RNN, GRU and LSTM in both directions, on torch's own kernels where those compute the same thing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cnpass.training.rules.registry import Kernel, Node, as_ints, rule

State = tuple[torch.Tensor, ...]
Direction = Callable[[torch.Tensor, int, State], tuple[torch.Tensor, State]]
"""Run one direction: (x [T, N, I], direction, state) to (y [T, N, H], last state)."""

_ONE_LAYER = True, 1, 0.0, True, False, False
"""With biases, one layer, no dropout, to be trained (cuDNN wants to know), one direction, time first."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _common(node: Node) -> tuple[int, list[str], str]:
    """Check what all three share; return hidden size, activations of one direction, direction."""
    direction = node.text("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    names = [str(n).capitalize() for n in node.attributes.get("activations", _DEFAULTS[node.op_type] * count)]
    allowed = [["Tanh"], ["Relu"]] if node.op_type == "RNN" else [_DEFAULTS[node.op_type]]
    size = len(names) // count
    if (
        any(names[i * size : (i + 1) * size] not in allowed for i in range(count))
        or names[:size] != names[-size:]
    ):
        raise node.refuse(f"activations {', '.join(names)}")
    if "clip" in node.attributes:
        raise node.refuse("clip")
    return node.integer("hidden_size", 0), names[:size], direction


def _run(
    node: Node,
    x: torch.Tensor,
    one: Direction,
    *,
    lengths: torch.Tensor | None,
    initial: State,
    direction: str,
) -> tuple[torch.Tensor, ...]:
    """Run all directions; ``initial`` and the last states are [D, N, H] (or [N, D, H] with layout 1)."""
    batch_first = node.integer("layout", 0) == 1
    if batch_first:
        x = x.transpose(0, 1)
        initial = tuple(s.transpose(0, 1) for s in initial)
    if lengths is not None and any(n != x.shape[0] for n in as_ints(lengths)):
        raise ValueError(f"{node.op_type}: sequences of different lengths have no rule")
    flips = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    outputs, lasts = [], []
    for d, flip in enumerate(flips):
        y, last = one(x.flip(0) if flip else x, d, tuple(s[d] for s in initial))
        outputs.append(y.flip(0) if flip else y)
        lasts.append(last)
    y = torch.stack(outputs, 1)
    states = tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))
    if batch_first:
        y = y.permute(2, 0, 1, 3)
        states = tuple(s.transpose(0, 1) for s in states)
    return (y, *states)[: node.outputs]


def _padded(optional: tuple[torch.Tensor | None, ...], count: int) -> tuple[torch.Tensor | None, ...]:
    """Return the optional inputs, absent ones at the end included."""
    return (*optional, *[None] * (count - len(optional)))


def _zeros(node: Node, x: torch.Tensor, w: torch.Tensor, hidden: int) -> torch.Tensor:
    """Return the state that an absent initial state stands for."""
    batch_first = node.integer("layout", 0) == 1
    batch = x.shape[0] if batch_first else x.shape[1]
    return x.new_zeros((batch, w.shape[0], hidden) if batch_first else (w.shape[0], batch, hidden))


def _regate(weight: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Reorder the gate blocks of one direction's weight [G*H, ...]."""
    return torch.cat([weight.chunk(len(order))[i] for i in order])


@rule("LSTM", structural={4}, state={5, 6}, layer=True)
def lstm(node: Node) -> Kernel:
    """LSTM, gates in ONNX's order i, o, f, c; with peepholes on a step-by-step path."""
    hidden, _, direction = _common(node)
    if node.flag("input_forget"):
        raise node.refuse("input_forget=1")

    def kernel(
        x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, *optional: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        b, lengths, h0, c0, p = _padded(optional, 5)
        bias = x.new_zeros(w.shape[0], 8 * hidden) if b is None else b

        def one(sequence: torch.Tensor, d: int, state: State) -> tuple[torch.Tensor, State]:
            input_bias, state_bias = bias[d].chunk(2)
            if p is None:
                order = [0, 2, 3, 1]
                weights = [_regate(t, order) for t in (w[d], r[d], input_bias, state_bias)]
                y, h, c = torch.lstm(sequence, [state[0][None], state[1][None]], weights, *_ONE_LAYER)
                return y, (h[0], c[0])
            return _peephole_lstm(sequence, state, (w[d], r[d], input_bias + state_bias), p[d])

        zeros = _zeros(node, x, w, hidden)
        state = (zeros if h0 is None else h0, zeros if c0 is None else c0)
        return _run(node, x, one, lengths=lengths, initial=state, direction=direction)

    return kernel


def _peephole_lstm(
    x: torch.Tensor, state: State, weights: State, p: torch.Tensor
) -> tuple[torch.Tensor, State]:
    w, r, bias = weights
    h, c = state
    peep_i, peep_o, peep_f = p.chunk(3)
    outputs = []
    for step in x:
        i, o, f, g = (step @ w.t() + h @ r.t() + bias).chunk(4, -1)
        c = torch.sigmoid(f + peep_f * c) * c + torch.sigmoid(i + peep_i * c) * torch.tanh(g)
        h = torch.sigmoid(o + peep_o * c) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


@rule("GRU", structural={4}, state={5}, layer=True)
def gru(node: Node) -> Kernel:
    """GRU, gates in ONNX's order z, r, h; the reset gate before or after the linear map."""
    hidden, _, direction = _common(node)
    after = node.flag("linear_before_reset")

    def kernel(
        x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, *optional: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        b, lengths, h0 = _padded(optional, 3)
        bias = x.new_zeros(w.shape[0], 6 * hidden) if b is None else b

        def one(sequence: torch.Tensor, d: int, state: State) -> tuple[torch.Tensor, State]:
            input_bias, state_bias = bias[d].chunk(2)
            if after:
                weights = [_regate(t, [1, 0, 2]) for t in (w[d], r[d], input_bias, state_bias)]
                y, h = torch.gru(sequence, state[0][None], weights, *_ONE_LAYER)
                return y, (h[0],)
            return _reset_first_gru(sequence, state[0], (w[d], r[d], input_bias + state_bias))

        state = (_zeros(node, x, w, hidden) if h0 is None else h0,)
        return _run(node, x, one, lengths=lengths, initial=state, direction=direction)

    return kernel


def _reset_first_gru(x: torch.Tensor, h: torch.Tensor, weights: State) -> tuple[torch.Tensor, State]:
    w, r, bias = weights
    size = h.shape[-1]
    outputs = []
    for step in x:
        gates = step @ w.t() + bias
        mixed = gates[..., : 2 * size] + h @ r[: 2 * size].t()
        update, reset = torch.sigmoid(mixed).chunk(2, -1)
        candidate = torch.tanh(gates[..., 2 * size :] + (reset * h) @ r[2 * size :].t())
        h = (1 - update) * candidate + update * h
        outputs.append(h)
    return torch.stack(outputs), (h,)


@rule("RNN", structural={4}, state={5}, layer=True)
def rnn(node: Node) -> Kernel:
    """RNN with Tanh or Relu."""
    hidden, names, direction = _common(node)
    function = torch.rnn_tanh if names == ["Tanh"] else torch.rnn_relu

    def kernel(
        x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, *optional: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        b, lengths, h0 = _padded(optional, 3)
        bias = x.new_zeros(w.shape[0], 2 * hidden) if b is None else b

        def one(sequence: torch.Tensor, d: int, state: State) -> tuple[torch.Tensor, State]:
            weights = [w[d], r[d], *bias[d].chunk(2)]
            y, h = function(sequence, state[0][None], weights, *_ONE_LAYER)
            return y, (h[0],)

        state = (_zeros(node, x, w, hidden) if h0 is None else h0,)
        return _run(node, x, one, lengths=lengths, initial=state, direction=direction)

    return kernel
