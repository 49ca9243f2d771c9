"""Losses of rows of logits from hidden states, chunk of rows by chunk.

With hidden states h (N, D), a weight W (V, D) and a bias b (V,) of student or teacher, of a chunk of rows

    x = h·Wᵀ + b                             its logits, in a buffer that all chunks share
    g                                        the gradient of its loss to x, which the loss writes over x
    dh = g·W,   dW = Σ gᵀ·h,   db = Σ g      sums over the rows of all chunks, in order

The chunks of student and teacher need not be of the same size. A chunk's logits are rounded to the dtype of the
product, as those of a linear layer are. dW and db of several chunks are summed in float32, or float64, and rounded
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..runtime import launch

#: Columns of a buffer of logits are padded to a multiple of this, so that each row is aligned.
_ALIGNED_COLUMNS = 64


class Matmul(Protocol):
    """A matrix product, as `triton_kernels.matmul`."""

    def __call__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        out: torch.Tensor | None = None,
        accumulate: bool = False,
    ) -> torch.Tensor: ...


class Linear(NamedTuple):
    """A linear layer: hidden states (N, D), weight (V, D), bias (V,) or None, and the dtype of its products."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    dtype: torch.dtype


class Wanted(NamedTuple):
    """Which gradients of a linear layer are wanted."""

    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients to hidden states, weight and bias of a linear layer; None where not wanted."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


class SelectedRows:
    """Rows, or those of them that are selected.

    Parameters
    ----------
    lead
        Leading dimensions of the tensors, whose product is the number of rows.
    selected
        Indices of the selected rows, on the host; None for all.
    device
        Of the tensors.
    ignored
        (rows,), bool: rows that are selected and do not count, whose hidden states may hold anything. Or None.
    """

    def __init__(
        self,
        lead: Sequence[int],
        selected: np.ndarray[Any, np.dtype[np.int64]] | None,
        device: torch.device,
        ignored: torch.Tensor | None = None,
    ) -> None:
        self.lead, self.ignored = tuple(lead), ignored
        self.rows = int(np.prod(self.lead, dtype=np.int64))
        self.count = self.rows if selected is None else len(selected)
        self._host = selected
        self.index = None if selected is None else torch.from_numpy(selected).to(device)

    def per_row(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values of the selected rows, (count,), of a tensor of one for each row."""
        flat = x.reshape(self.rows)
        return flat if self.index is None else flat.index_select(0, self.index)

    def take(self, x: torch.Tensor, at: slice) -> torch.Tensor:
        """Return a chunk of rows, (rows, columns), of a tensor (*lead, columns), or one with a dimension of all rows.

        A view where all rows are selected and adjacent.
        """
        if self._host is None:
            parts = list(_blocks(x, at.start, at.stop))
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        return x[self._position(x, at)]

    def put(self, x: torch.Tensor, at: slice, values: torch.Tensor) -> None:
        """Write a chunk of selected rows."""
        x[self._position(x, at)] = values

    def _position(self, x: torch.Tensor, at: slice) -> tuple[torch.Tensor, ...]:
        assert self._host is not None
        assert self.index is not None
        if x.dim() == 2:
            return (self.index[at],)
        of_dims = np.unravel_index(self._host[at], self.lead)
        return tuple(torch.from_numpy(np.ascontiguousarray(i)).to(self.index.device) for i in of_dims)


def chunks(rows: slice, size: int) -> Iterator[slice]:
    """Yield chunks of a range of rows, in order."""
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _blocks(x: torch.Tensor, start: int, stop: int) -> Iterator[torch.Tensor]:
    """Yield views (rows, columns) of rows `start` to `stop`, in order."""
    try:
        yield x.view(-1, x.shape[-1])[start:stop]
        return
    except RuntimeError:  # rows of a slice: no view has them all
        inner = int(np.prod(x.shape[1:-1], dtype=np.int64))
    for i in range(start // inner, -(-stop // inner)):
        yield from _blocks(x[i], max(start - i * inner, 0), min(stop - i * inner, inner))


class Logits:
    """Logits that are there, (*lead, V), and where their gradient goes.

    Parameters
    ----------
    logits
        Of any strides.
    rows
        What is asked for, chunk by chunk.
    wanted
        Whether a gradient to them is.
    """

    def __init__(self, logits: torch.Tensor, rows: SelectedRows, wanted: bool) -> None:
        self._logits, self._rows = logits, rows
        make = torch.zeros if rows.index is not None else torch.empty
        self.gradient = make(logits.shape, dtype=logits.dtype, device=logits.device) if wanted else None

    def chunk(self, at: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits of a chunk of rows, and where the loss writes their gradient, or None."""
        x = self._rows.take(self._logits, at)
        if self.gradient is None or self._rows.index is None:
            return x, None if self.gradient is None else self._rows.take(self.gradient, at)
        return x, torch.empty(x.shape, dtype=x.dtype, device=x.device)

    def add_gradient(self, at: slice, g: torch.Tensor) -> None:
        """Take the gradient of a chunk."""
        if self.gradient is not None and self._rows.index is not None:
            self._rows.put(self.gradient, at, g)


class Projection:
    """Logits of a linear layer, and its gradients.

    Parameters
    ----------
    layer
        Tensors of any strides.
    columns
        Number of logits that count, at most V; nothing else of the weight is read, and its gradient is 0.
    rows
        What is asked for, chunk by chunk.
    size
        Rows of a chunk.
    wanted
        Which gradients are.
    matmul
        The product.
    """

    def __init__(
        self, layer: Linear, columns: int, rows: SelectedRows, size: int, wanted: Wanted, matmul: Matmul
    ) -> None:
        hidden, weight, bias, dtype = layer
        self._layer, self._columns, self._rows, self._matmul, self._wanted = layer, columns, rows, matmul, wanted
        self._weight = weight[:columns].to(dtype)
        self._bias = None if bias is None else bias[:columns].to(dtype)
        device, self._several, size = hidden.device, rows.count > size, max(1, min(size, rows.count))
        padded = -(-columns // _ALIGNED_COLUMNS) * _ALIGNED_COLUMNS
        buffer = torch.empty((size, padded), dtype=dtype, device=device)
        buffer[:, columns:] = 0  # oneDNN's product reads beyond the columns of its operand, and multiplies by 0
        self._buffer = buffer[:, :columns]
        self._to_hidden = self._to_weight = self._to_bias = None
        if wanted.hidden:
            make = torch.zeros if rows.index is not None else torch.empty
            self._to_hidden = make(hidden.shape, dtype=hidden.dtype, device=device)
        if wanted.weight:
            self._to_weight = self._sum_of_chunks(weight, columns)
        if wanted.bias and bias is not None:
            self._to_bias = self._sum_of_chunks(bias, columns)
            self._ones = torch.ones((1, size), dtype=dtype, device=device)

    def _sum_of_chunks(self, parameter: torch.Tensor, columns: int) -> torch.Tensor:
        """Return memory for a gradient: 0 where no chunk writes."""
        dtype = launch.compute_dtype(self._layer.dtype, parameter.dtype) if self._several else parameter.dtype
        make = torch.empty if self._rows.count and columns == len(parameter) else torch.zeros
        return make(parameter.shape, dtype=dtype, device=parameter.device)

    def chunk(self, at: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits of a chunk of rows, and where the loss writes their gradient: over them, or None."""
        self._h = self._rows.take(self._layer.hidden, at).to(self._layer.dtype)
        if self._rows.ignored is not None and self._wanted.weight:  # 0·NaN would be NaN
            self._h = self._h.masked_fill(self._rows.ignored[at, None], 0)
        x = self._matmul(self._h, self._weight.t(), self._bias, out=self._buffer[: at.stop - at.start])
        return x, x if any(self._wanted) else None

    def add_gradient(self, at: slice, g: torch.Tensor) -> None:
        """Take the gradient of the chunk whose logits were asked for last."""
        later, columns = at.start > 0, self._columns
        if self._to_hidden is not None:
            if self._rows.index is None:
                self._matmul(g, self._weight, out=self._to_hidden[at])
            else:
                dh = torch.empty((len(g), self._weight.shape[1]), dtype=self._to_hidden.dtype, device=g.device)
                self._rows.put(self._to_hidden, at, self._matmul(g, self._weight, out=dh))
        if self._to_weight is not None:
            self._matmul(g.t(), self._h, out=self._to_weight[:columns], accumulate=later)
        if self._to_bias is not None:
            self._matmul(self._ones[:, : len(g)], g, out=self._to_bias[None, :columns], accumulate=later)

    def free_logits(self) -> None:
        """Free the memory of logits, after the last chunk."""
        del self._buffer

    def gradients(self) -> Gradients:
        """Return the gradients, each in its tensor's dtype."""
        _, weight, bias, _ = self._layer
        return Gradients(
            self._to_hidden,
            None if self._to_weight is None else self._to_weight.to(weight.dtype),
            None if self._to_bias is None or bias is None else self._to_bias.to(bias.dtype),
        )


def run_chunks(
    count: int,
    student: tuple[Projection, int],
    teacher: tuple[Projection | Logits | None, int],
    loss_of_rows: Callable[..., None],
) -> None:
    """Call ``loss_of_rows(at, student, teacher, dstudent, dteacher)`` with the logits of chunks of `count` rows.

    Each side comes with the number of rows of its chunks. A chunk of the student's may have several of the teacher's,
    or parts of that size where there is no teacher. The last two arguments are where the loss writes the gradients to
    these logits; None: not wanted.
    """
    of_student, of_teacher = student[0], teacher[0]
    for whole in chunks(slice(0, count), student[1]):
        x, dx = of_student.chunk(whole)
        for at in chunks(whole, teacher[1]):
            own = slice(at.start - whole.start, at.stop - whole.start)
            s, ds = x[own], None if dx is None else dx[own]
            t, dt = (None, None) if of_teacher is None else of_teacher.chunk(at)
            loss_of_rows(at, s, t, ds, dt)
            if of_teacher is not None and dt is not None:
                of_teacher.add_gradient(at, dt)
        if dx is not None:
            of_student.add_gradient(whole, dx)
