"""Losses of hidden states: of a student and a teacher, and of one model with labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import triton_kernels as tk
from lucid._flags import get_float32_matmul_precision
from lucid._linear_args import LinearOptions
from lucid._loss_args import CrossEntropyConfig, DistillationConfig, Reduction
from lucid.autograd.function import Function
from lucid.ops.from_hidden import CrossEntropyOfRows, DivergenceOfRows, LinearLoss, Reduced, RowLoss, Tokens
from lucid.ops.in_forward import in_forward, save_gradients, scaled_gradients
from lucid.ops.memory import raise_device_errors
from lucid.tensor import Tensor
from triton_kernels.losses.from_hidden import Linear

#: Which of the gradients are of rows: to hidden states, weight and bias of student and teacher, and to its logits.
_OF_ROWS = (True, False, False, True, False, False, True)


class _Options:
    """What a loss does with its tensors.

    `name` is the function's, `labels` the argument's; `chunk` is that of `LinearLoss`, and `dtypes` are of the products
    of student and teacher.
    """

    def __init__(
        self,
        name: str,
        labels: str,
        loss: RowLoss,
        columns: int,
        reduction: Reduction,
        chunk: tuple[int, int],
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> None:
        self.name, self.labels, self._loss, self._columns = name, labels, loss, columns
        self.reduction, self._chunk, self._dtypes = reduction, chunk, dtypes

    def run(
        self, layers: tuple[Any, ...], others: tuple[Any, ...], wanted: tuple[bool, ...], dloss: Tensor | None = None
    ) -> Any:
        """Return what `LinearLoss.run` does; `others` are weight, labels, weights of classes and normalizer."""
        buffers: list[Any] = [None if x is None else x._buffer for x in layers]
        weight, labels, class_weight, normalizer = (None if x is None else x._buffer for x in others)
        if class_weight is not None:
            class_weight = class_weight.contiguous()
        how = self.reduction
        of = LinearLoss(
            self._loss,
            self._columns,
            Tokens(weight, labels, class_weight),
            Reduced(how.reduce, how.mean, how.scale, normalizer),
            self._chunk,
            tk,
            partial(tk.matmul, tf32=get_float32_matmul_precision() == "high"),
        )
        hidden = buffers[0]
        student, teacher = _layer(buffers[:3], self._dtypes[0]), buffers[6]
        if buffers[3] is not None:
            teacher = _layer(buffers[3:6], self._dtypes[1])
        upstream = None if dloss is None else dloss._buffer
        loss, weights, made = of.run(student, teacher, tuple(hidden.shape[:-1]), wanted, upstream)
        raise_device_errors(hidden, labels=self.labels)
        shaped = (None if g is None else g.view(x.shape) for g, x in zip(made, buffers, strict=True))
        return loss, weights, tuple(shaped)


def _layer(buffers: list[Any], dtype: torch.dtype) -> Linear:
    hidden, weight, bias = buffers
    return Linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias, dtype)


class LossFromHidden(Function):
    """A loss of (hidden, weight, bias) of student and teacher and the teacher's logits, each of which may be None."""

    @staticmethod
    def forward(ctx: Any, options: _Options, *tensors: Tensor | None) -> Tensor:
        ctx.options, layers, others = options, tensors[:7], tensors[7:]
        wanted = tuple(ctx.needs_input_grad[1:8])
        buffers = (None if x is None else x._buffer for x in layers)
        ctx.in_forward = any(wanted) and options.reduction.reduce and in_forward(*buffers)
        loss, weights, made = options.run(layers, others, wanted if ctx.in_forward else (False,) * 7)
        if ctx.in_forward:
            given = tuple(x for x in layers if x is not None)
            save_gradients(ctx, given, made, weights, None, options.name, _OF_ROWS)
        else:
            ctx.save_for_backward(*tensors)
        return Tensor._wrap(loss)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_forward:
            return None, *scaled_gradients(ctx, dloss), *(None,) * 4
        wanted = tuple(ctx.needs_input_grad[1:8])
        return None, *LossFromHiddenBackward.apply(ctx.options, wanted, dloss, *ctx.saved_tensors), *(None,) * 4


class LossFromHiddenBackward(Function):
    """Gradients, of logits that are computed again."""

    @staticmethod
    def forward(
        ctx: Any, options: _Options, wanted: tuple[bool, ...], dloss: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.name = options.name
        _, _, made = options.run(tensors[:7], tensors[7:], wanted, dloss)
        return tuple(None if g is None else Tensor._wrap(g) for g in made)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{ctx.name} has no second derivatives: its gradients cannot be differentiated")


def linear_distillation_loss(
    layers: tuple[Tensor | None, ...],
    *,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    options: DistillationConfig,
    linear: LinearOptions,
    reduction: Reduction,
) -> Tensor:
    """A divergence of the student's logits from the teacher's, of hidden states, weights and biases, or of logits."""
    how = _Options(
        "linear_distillation_loss",
        "labels",
        DivergenceOfRows({**options.shared, **linear.maps}, options.ignore_index),
        options.vocab_size,
        reduction,
        (linear.chunk_rows, linear.workspace),
        (linear.student_dtype, linear.teacher_dtype),
    )
    return LossFromHidden.apply(how, *layers, weight, labels, None, normalizer)


def linear_cross_entropy(
    layer: tuple[Tensor, Tensor, Tensor | None],
    of: CrossEntropyConfig,
    *,
    class_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    dtype: torch.dtype,
    chunk: tuple[int, int],
) -> Tensor:
    """Cross-entropy of labels with logits, of hidden states, a weight and a bias."""
    options = {
        "ignore_index": of.ignore_index,
        "label_smoothing": of.label_smoothing,
        "logit_scale": logit_scale,
        "softcap": softcap,
    }
    columns = layer[1].shape[0]
    how = _Options(
        "linear_cross_entropy",
        "target",
        CrossEntropyOfRows(options, columns),
        columns,
        of.reduction,
        chunk,
        (dtype, dtype),
    )
    return LossFromHidden.apply(how, *layer, None, None, None, None, None, of.target, class_weight, None)
