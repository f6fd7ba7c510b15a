"""Matrix products."""

from __future__ import annotations

import torch

from cnpass.training.rules.registry import Kernel, Node, rule


@rule("MatMul", layer=True)
def matmul(_node: Node) -> Kernel:
    """NumPy's matmul."""
    return torch.matmul


@rule("Gemm", layer=True)
def gemm(node: Node) -> Kernel:
    """``alpha * A' @ B' + beta * C``."""
    trans_a, trans_b = node.flag("transA"), node.flag("transB")
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)

    def kernel(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        a = a.t() if trans_a else a
        b = b.t() if trans_b else b
        if c is not None and alpha == 1.0 and beta == 1.0 and c.dim() == 1:
            return torch.addmm(c, a, b)
        y = torch.mm(a, b) * alpha if alpha != 1.0 else torch.mm(a, b)
        return y if c is None else y + (c * beta if beta != 1.0 else c)

    return kernel


@rule("Einsum", layer=True)
def einsum(node: Node) -> Kernel:
    """Einstein summation; torch reads the same equations."""
    equation = node.text("equation", "").replace(" ", "")
    return lambda *operands: torch.einsum(equation, *operands)
