"""Attention and rotary position embeddings, as one operator each since opset 23."""

from __future__ import annotations

import math

import torch

from cnpass.training.rules.registry import Kernel, Node, rule


@rule("Attention", since=23, structural={3, 6})
def attention(node: Node) -> Kernel:
    """Scaled dot-product attention of ONNX: heads in an axis or side by side, masks, grouped keys, a cache.

    A query that may attend to no key gives zeros, as in the operator's definition.
    """
    heads, key_heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    causal, softcap = node.flag("is_causal"), node.number("softcap", 0.0)
    mode, scale = node.integer("qk_matmul_output_mode", 0), node.attributes.get("scale")
    before, after = node.integer("left_window_size", -1), node.integer("right_window_size", -1)

    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None = None,
        past_key: torch.Tensor | None = None,
        past_value: torch.Tensor | None = None,
        filled: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        flat = q.dim() == 3
        if flat:
            q, k, v = _split(q, heads), _split(k, key_heads), _split(v, key_heads)
        if past_key is not None and past_value is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        present = k, v
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in present)
        allowed = _allowed(q, k, past_key, filled, before, 0 if causal and after != 0 else after)
        bias = _bias(q.new_zeros(()).masked_fill(~allowed, -math.inf), mask, k.shape[2])
        # As defined, the root of the scale goes into either factor.
        root = math.sqrt(q.shape[-1] ** -0.5 if scale is None else scale)
        raw = (q * root) @ (k * root).transpose(-2, -1)
        capped = torch.tanh(raw / softcap) * softcap if softcap > 0 else raw
        biased = capped + bias
        nothing = bias.amax(-1, keepdim=True) == -math.inf
        weights = torch.softmax(biased.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
        y = weights @ v
        if flat:
            y = y.transpose(1, 2).flatten(2)
        return y, *present, (raw if not softcap else capped, capped, biased, weights)[mode]

    return kernel


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _allowed(
    q: torch.Tensor,
    k: torch.Tensor,
    past: torch.Tensor | None,
    filled: torch.Tensor | None,
    before: int,
    after: int,
) -> torch.Tensor:
    """Which keys [length] a query may see: [batch or 1, 1, queries, keys], by position and by padding.

    A query's position counts the keys that came before its block: those of the cache, or, of a cache that is
    filled in place, the `filled` ones of its sample.
    """
    queries, keys = q.shape[2], torch.arange(k.shape[2], device=q.device)
    offset = torch.zeros(1, dtype=torch.int64, device=q.device)
    if past is not None:
        offset += past.shape[2]
    elif filled is not None:
        offset = filled.to(q.device).reshape(-1) - queries
    own = torch.arange(queries, device=q.device)[:, None] + offset.reshape(-1, 1, 1, 1)
    allowed = torch.ones_like(own - keys, dtype=torch.bool)
    if before >= 0:
        allowed &= own - keys <= before
    if after >= 0:
        allowed &= keys - own <= after
    if filled is not None:
        allowed = allowed & (keys < filled.to(q.device).reshape(-1, 1, 1, 1))
    return allowed


def _bias(bias: torch.Tensor, mask: torch.Tensor | None, keys: int) -> torch.Tensor:
    """The bias plus a mask, of truths or of numbers; keys that a short mask does not name are hidden."""
    if mask is None:
        return bias
    mask = mask.to(bias.device)
    if mask.dtype == torch.bool:
        mask = bias.new_zeros(()).masked_fill(~mask, -math.inf)
    short = keys - mask.shape[-1]
    return bias + (torch.nn.functional.pad(mask, (0, short), value=-math.inf) if short > 0 else mask)


@rule("RotaryEmbedding", since=23, structural={1, 2, 3})
def rotary_embedding(node: Node) -> Kernel:
    """Rotary position embedding of [batch, heads, length, size] or [batch, length, heads * size]."""
    heads, width = node.integer("num_heads", 0), node.integer("rotary_embedding_dim", 0)
    interleaved = node.flag("interleaved")

    def kernel(
        x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position: torch.Tensor | None = None
    ) -> torch.Tensor:
        flat = x.dim() == 3
        y = _split(x, heads) if flat else x
        if position is not None:
            cos, sin = cos[position.long()], sin[position.long()]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        turned = y[..., : width or y.shape[-1]]
        a, b = turned.reshape(*turned.shape[:-1], -1, 2).unbind(-1) if interleaved else turned.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        made = (
            torch.stack([real, imaginary], -1).flatten(-2)
            if interleaved
            else torch.cat([real, imaginary], -1)
        )
        y = torch.cat([made, y[..., made.shape[-1] :]], -1)
        return y.transpose(1, 2).flatten(2) if flat else y

    return kernel
