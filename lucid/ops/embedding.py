"""Rows of a table by index."""

from __future__ import annotations

from typing import Any

import triton_kernels as tk
from lucid.autograd.function import Function
from lucid.ops.arithmetic import eq, where
from lucid.ops.memory import raise_device_errors, unsqueeze
from lucid.tensor import Tensor


class Embedding(Function):
    """table[indices]."""

    @staticmethod
    def forward(ctx: Any, indices: Tensor, table: Tensor) -> Tensor:
        ctx.rows = table.shape[0]
        ctx.save_for_backward(indices)
        out = Tensor._wrap(tk.embedding_forward(indices._buffer, table._buffer))
        raise_device_errors(table._buffer)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return None, EmbeddingBackward.apply(indices, grad, ctx.rows)


class EmbeddingBackward(Function):
    """The sum, for each row of the table, of the gradients of the tokens that named it."""

    @staticmethod
    def forward(ctx: Any, indices: Tensor, grad: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(indices)
        return Tensor._wrap(tk.embedding_backward(indices._buffer, grad._buffer, rows))

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return None, Embedding.apply(indices, outer), None


def embedding(indices: Tensor, table: Tensor, padding_idx: int | None = None) -> Tensor:
    """table[indices], of shape (*indices.shape, width); the row `padding_idx` gets no gradient."""
    rows = Embedding.apply(indices, table)
    if padding_idx is None or not rows.requires_grad:
        return rows
    return where(unsqueeze(eq(indices, padding_idx), -1), rows.detach(), rows)
