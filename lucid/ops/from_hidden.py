"""Losses of rows of logits that are computed from hidden states, with their gradients, for lucid's tensors and torch's.

`triton_kernels.losses.from_hidden` has the formulas. Launchers, those of kernels or of torch's operators, and the
matrix product are parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

import triton_kernels as tk
from lucid.ops.in_forward import loss_factor
from triton_kernels.losses.from_hidden import Linear, Logits, Matmul, Projection, SelectedRows, Wanted, run_chunks

#: On a GPU, the smallest number of multiply-adds of one product for which the host waits for the number of tokens that
#: count: about 2 ms of the four products of a training step on an H200.
WORTH_A_SYNC = 2**37


class Tokens(NamedTuple):
    """What rows of logits come with: a weight for each, labels, weights of their classes; each may be None."""

    weight: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    class_weight: torch.Tensor | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
        """Return a change of what there is of each row."""
        weight, labels = (None if x is None else change(x) for x in (self.weight, self.labels))
        return Tokens(weight, labels, self.class_weight)


class RowLoss(Protocol):
    """A loss of rows of logits."""

    def token_weights(self, kernels: Any, hidden: torch.Tensor, tokens: Tokens, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight of each row in a mean, (rows,); without weights of classes it is 0 in rows of loss 0."""

    def forward(
        self,
        kernels: Any,
        logits: tuple[Any, ...],
        gradients: tuple[Any, ...],
        tokens: Tokens,
        factor: tuple[float, torch.Tensor | None],
    ) -> torch.Tensor:
        """Return the losses of a chunk of rows; write gradients times a factor, where given."""

    def backward(
        self, kernels: Any, logits: tuple[Any, ...], gradients: tuple[Any, ...], tokens: Tokens, dloss: torch.Tensor
    ) -> None:
        """Write gradients for an upstream gradient of each row."""


@dataclass(frozen=True, slots=True)
class DivergenceOfRows:
    """Divergences, with the options of `triton_kernels.divergence_forward`."""

    options: dict[str, Any]
    ignore_index: int

    def token_weights(self, kernels: Any, hidden: torch.Tensor, tokens: Tokens, dtype: torch.dtype) -> torch.Tensor:
        return kernels.token_weights(
            hidden,
            weight=tokens.weight,
            labels=tokens.labels,
            ignore_index=self.ignore_index,
            vocab_size=self.options["vocab_size"],
            dtype=dtype,
        )

    def forward(
        self,
        kernels: Any,
        logits: tuple[Any, ...],
        gradients: tuple[Any, ...],
        tokens: Tokens,
        factor: tuple[float, torch.Tensor | None],
    ) -> torch.Tensor:
        return self._losses(
            kernels,
            logits,
            tokens,
            gradient_scale=factor[0],
            gradient_factor=factor[1],
            dstudent=gradients[0],
            dteacher=gradients[1],
        )[0]

    def _losses(
        self, kernels: Any, logits: tuple[Any, ...], tokens: Tokens, **gradients: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.divergence_forward(
            *logits,
            weight=tokens.weight,
            labels=tokens.labels,
            ignore_index=self.ignore_index,
            **self.options,
            **gradients,
        )

    def backward(
        self, kernels: Any, logits: tuple[Any, ...], gradients: tuple[Any, ...], tokens: Tokens, dloss: torch.Tensor
    ) -> None:
        _, statistics = self._losses(kernels, logits, tokens)
        kernels.divergence_backward(
            *logits,
            statistics,
            dloss,
            labels=tokens.labels if self.options["hard_label_weight"] else None,
            student_out=gradients[0],
            teacher_out=gradients[1],
            **self.options,
        )


@dataclass(frozen=True, slots=True)
class CrossEntropyOfRows:
    """Cross-entropies with labels, with the options of `triton_kernels.cross_entropy_forward`."""

    options: dict[str, Any]
    columns: int

    def token_weights(self, kernels: Any, hidden: torch.Tensor, tokens: Tokens, dtype: torch.dtype) -> torch.Tensor:
        return kernels.token_weights(
            hidden,
            labels=tokens.labels,
            class_weight=tokens.class_weight,
            ignore_index=self.options["ignore_index"],
            vocab_size=self.columns,
            dtype=dtype,
        )

    def forward(
        self,
        kernels: Any,
        logits: tuple[Any, ...],
        gradients: tuple[Any, ...],
        tokens: Tokens,
        factor: tuple[float, torch.Tensor | None],
    ) -> torch.Tensor:
        losses, _ = kernels.cross_entropy_forward(
            logits[0],
            tokens.labels,
            class_weight=tokens.class_weight,
            gradient_scale=factor[0],
            gradient_factor=factor[1],
            dx=gradients[0],
            **self.options,
        )
        return losses

    def backward(
        self, kernels: Any, logits: tuple[Any, ...], gradients: tuple[Any, ...], tokens: Tokens, dloss: torch.Tensor
    ) -> None:
        given = {"class_weight": tokens.class_weight, **self.options}
        _, statistics = kernels.cross_entropy_forward(logits[0], tokens.labels, **given)
        kernels.cross_entropy_backward(logits[0], tokens.labels, statistics, dloss, out=gradients[0], **given)


class Reduced(NamedTuple):
    """How losses of rows are reduced: see `lucid._loss_args.Reduction`; the normalizer is a tensor, or None."""

    reduce: bool
    mean: bool
    scale: float
    normalizer: torch.Tensor | None


class LinearLoss(NamedTuple):
    """A loss from hidden states, and how it is computed.

    Attributes
    ----------
    loss
        Of rows of logits.
    columns
        Number of logits that count.
    tokens, reduction
        Of the rows.
    chunk
        Rows of a chunk, or 0 for what fits the workspace, and the bytes of that: see `chunk_sizes`.
    kernels
        The namespace of launchers.
    matmul
        The matrix product.
    """

    loss: RowLoss
    columns: int
    tokens: Tokens
    reduction: Reduced
    chunk: tuple[int, int]
    kernels: Any
    matmul: Matmul

    def run(
        self,
        student: Linear,
        teacher: Linear | torch.Tensor | None,
        lead: tuple[int, ...],
        wanted: tuple[bool, ...],
        dloss: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor | None, ...]]:
        """Return the loss; a number for each row, 0 where it does not count, or None where all do; and gradients.

        Parameters
        ----------
        student, teacher
            Layers, with hidden states (N, D); or the teacher's logits, (*lead, V).
        lead
            The leading dimensions.
        wanted
            Of the gradients to the student's hidden states, weight and bias, the teacher's, and its logits.
        dloss
            Upstream gradient, 0-d of a reduced loss, else (*lead); None: 1.
        """
        kernels, hidden = self.kernels, student.hidden
        dtypes = [student.dtype]
        if teacher is not None:
            dtypes.append(teacher.dtype)
        dtype = tk.launch.compute_dtype(*dtypes)
        of_rows = self.tokens.each(lambda x: x.reshape(-1))
        all_count = of_rows.weight is None and of_rows.labels is None
        weights = counts = None if all_count else self.loss.token_weights(kernels, hidden, of_rows, dtype)
        if of_rows.class_weight is not None:  # label smoothing has a loss of rows whose label's class has weight 0
            counts = self.loss.token_weights(kernels, hidden, of_rows._replace(class_weight=None), dtype)
        selected = ignored = None
        if counts is not None and may_wait(hidden.device, hidden.numel() * self.columns):
            selected = _selected(counts)
        elif counts is not None:
            ignored = tk.pointwise("eq", counts, 0, dtype=torch.bool, compute=dtype)
        rows = SelectedRows(lead, selected, hidden.device, ignored)
        sizes = self.chunk_sizes(rows.count, student, teacher, wanted[1])
        of_student = Projection(student, self.columns, rows, sizes[0], Wanted(*wanted[:3]), self.matmul)
        of_teacher: Projection | Logits | None = None
        if isinstance(teacher, Linear):
            of_teacher = Projection(teacher, self.columns, rows, sizes[1], Wanted(*wanted[3:6]), self.matmul)
        elif teacher is not None:
            of_teacher = Logits(teacher, rows, wanted[6])
        factor = self._factor(hidden, weights, dtype, dloss)
        tokens = of_rows.each(rows.per_row)
        dloss_rows = None if dloss is None or self.reduction.reduce else rows.per_row(dloss.to(dtype))
        make = torch.empty if selected is None else torch.zeros
        losses = make((rows.rows,), dtype=dtype, device=hidden.device)

        def loss_of_rows(at: slice, s: Any, t: Any, ds: Any, dt: Any) -> None:
            own = tokens.each(lambda x: x[at])
            if dloss_rows is not None:
                self.loss.backward(kernels, (s, t), (ds, dt), own, dloss_rows[at])
                return
            chunk = self.loss.forward(kernels, (s, t), (ds, dt), own, factor)
            if rows.index is None:
                losses[at].copy_(chunk)
            else:
                losses[rows.index[at]] = chunk

        run_chunks(rows.count, (of_student, sizes[0]), (of_teacher, sizes[1]), loss_of_rows)
        for side in (of_student, of_teacher):
            if isinstance(side, Projection):
                side.free_logits()  # before gradients take memory in other dtypes
        gradients: list[Any] = [*of_student.gradients(), None, None, None, None]
        if isinstance(of_teacher, Projection):
            gradients[3:6] = of_teacher.gradients()
        elif of_teacher is not None:
            gradients[6] = of_teacher.gradient
        if not self.reduction.reduce:
            return losses.view(lead), counts, tuple(gradients)
        loss = kernels.token_mean(losses, factor=factor[1], scale=factor[0])[0]
        return loss, counts, tuple(gradients)

    def chunk_sizes(
        self, count: int, student: Linear, teacher: Linear | torch.Tensor | None, to_weight: bool
    ) -> tuple[int, int]:
        """Return the rows of a chunk of the student's logits, and of the teacher's.

        The gradient of a weight shorter than float32 is summed over chunks in float32, which takes time for each chunk,
        and memory; then it is rounded, into more. As much memory serves before for fewer chunks of the student's: for
        one that has all gradients, in the place of the sum, or else for larger ones, in the place of what is rounded.
        """
        given, workspace = self.chunk
        if given:
            return given, given
        row_s = self.columns * student.dtype.itemsize
        row_t = 0 if teacher is None else self.columns * teacher.dtype.itemsize
        of_student, of_teacher = chunk_sizes(row_s, row_t, workspace)
        weight = student.weight[: self.columns]
        dtype = tk.launch.compute_dtype(student.dtype, weight.dtype)
        if not to_weight or count <= of_student or weight.dtype == dtype:
            return of_student, of_teacher
        fits = count
        if count * row_s > weight.numel() * dtype.itemsize:
            fits = _whole_tiles(weight.numel() * weight.dtype.itemsize // row_s)
        if fits <= of_student:
            return of_student, of_teacher
        return fits, chunk_sizes(row_t or row_s, 0, workspace)[0]

    def _factor(
        self, hidden: torch.Tensor, weights: torch.Tensor | None, dtype: torch.dtype, dloss: torch.Tensor | None
    ) -> tuple[float, torch.Tensor | None]:
        """Return the factor of each row's loss in the result, or in its gradient: a number, and a tensor or None."""
        reduce, mean, scale, normalizer = self.reduction
        if not reduce:
            return 1.0, None
        of_weights: Callable[[], torch.Tensor] | None = None if weights is None else lambda: weights
        scale, factor = loss_factor(hidden, of_weights, mean, normalizer, scale, dtype, self.kernels)
        if dloss is not None and factor is not None:
            factor = self.kernels.scale_gradient(factor.view(1), dloss).view(())
        elif dloss is not None:
            factor = dloss.to(dtype)
        return scale, factor


def chunk_sizes(row_s: int, row_t: int, workspace: int) -> tuple[int, int]:
    """Return how many rows of logits of student and teacher, of so many bytes each, fit a workspace together.

    The more rows of the student, the less often the sum of its weight's gradient is read and written. A quarter of the
    workspace, or 256 rows, are enough for the teacher's product to be bound by arithmetic. Multiples of 128, if more.
    Without a teacher, of 0 bytes, its rows are the student's.

    Examples
    --------
    >>> chunk_sizes(2 * 128_256, 2 * 128_256, 2**28)
    (768, 256)
    """
    of_teacher = min(max(workspace // 4, 256 * row_t), workspace // 2) if row_t else 0
    student = _whole_tiles((workspace - of_teacher) // row_s)
    return student, _whole_tiles(of_teacher // row_t) if row_t else student


def _whole_tiles(rows: int) -> int:
    return rows // 128 * 128 if rows >= 128 else max(rows, 1)


def may_wait(device: torch.device, multiply_adds: int) -> bool:
    """Return whether the host waits to know the rows that count, so that products leave out the others.

    On a GPU it does if that is worth it for a product, and cannot where a graph is captured.
    """
    return device.type != "cuda" or (multiply_adds >= WORTH_A_SYNC and not torch.cuda.is_current_stream_capturing())


def _selected(weights: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return the indices of rows that count, on the host; None for all."""
    selected = np.flatnonzero(weights.cpu().numpy())
    return None if len(selected) == len(weights) else selected
