"""Losses from hidden states as operators of torch: of a student and a teacher, and of one model with labels.

Options come by position, in the order of the schemas. The loss computes its gradients where it is asked to; the graph
keeps these. A loss of each row, or of float16, whose gradients need the upstream one, computes them in backward, from
the hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid._flags import is_gradient_in_forward
from lucid.ops.from_hidden import CrossEntropyOfRows, DivergenceOfRows, LinearLoss, Reduced, Tokens
from lucid.ops.in_forward import upstream_of_sums
from lucid.ops.memory import of_argument, raise_device_errors
from lucid.torch import eager, products
from lucid.torch.loss_and_gradients import NotDifferentiable, scaled
from lucid.torch.operators import launchers, no_gradient, operator, save, saved
from triton_kernels.losses.from_hidden import Linear

#: Returns the loss, the inputs of its layers, and the argument's name of labels, from the arguments of an operator.
Setup = Callable[..., tuple[LinearLoss, Linear, Any, str]]


#: Of the gradients to hidden states, weights and biases of student and teacher, and its logits: those of rows.
_OF_ROWS = (0, 3, 6)


def define(name: str, arguments: str, *, gradients: int, reduce: int, setup: Setup) -> Callable[..., Tensor]:
    """Define ``lucid::NAME`` and ``lucid::NAME_backward``; return the loss.

    Parameters
    ----------
    arguments
        The schema's, of which the first `gradients` are tensors that may need one, hidden states first, then weights.
    reduce
        Index of the option that says whether the loss is reduced.
    setup
        Reads them.
    """
    count = arguments.count(",") + 1
    no_second = f"{name} has no second derivatives: its gradients cannot be differentiated"

    def run(args: tuple[Any, ...], wanted: Any, dloss: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[Any, ...]]:
        of, student, teacher, labels = setup(*args)
        # Of a product autocast would convert the operands.
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            lead = tuple(args[0].shape[:-1])
            try:
                loss, weights, made = of.run(student, teacher, lead, _flags(wanted, gradients), dloss)
            except IndexError as error:
                raise of_argument(error, labels) from None
        raise_device_errors(args[0], labels=labels)
        # Hidden states are rows to the loss.
        return (
            loss,
            weights,
            tuple(None if g is None else g.view(x.shape) for g, x in zip(made, args[:gradients], strict=False)),
        )

    def or_empty(made: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, ...]:
        return tuple(like.new_empty(0) if tensor is None else tensor for tensor in made)

    def forward(*given: Any) -> tuple[Tensor, ...]:
        *args, wanted = given
        loss, weights, made = run(tuple(args), wanted, None)
        return loss, *or_empty((weights, *made), args[0])

    def fake_gradients(args: Any, wanted: Any) -> tuple[Tensor, ...]:
        return tuple(
            x.new_empty(x.shape) if want else args[0].new_empty(0)
            for x, want in zip(args[:gradients], _flags(wanted, gradients), strict=True)
        )

    def fake(*given: Any) -> tuple[Tensor, ...]:
        *args, wanted = given
        hidden, dtype = args[0], tk.launch.compute_dtype(*(arg for arg in args if isinstance(arg, torch.dtype)))
        loss = hidden.new_empty(() if args[reduce] else hidden.shape[:-1], dtype=dtype)
        # Whether all rows count is known from what is given.
        counted = any(isinstance(x, Tensor) for x in args[gradients : gradients + 2])
        rows = math.prod(hidden.shape[:-1]) if counted else 0
        return loss, hidden.new_empty(rows, dtype=dtype if counted else hidden.dtype), *fake_gradients(args, wanted)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *args, wanted = inputs
        _, weights, *made = output
        ctx.mark_non_differentiable(weights, *made)
        ctx.set_materialize_grads(False)
        ctx.in_forward = wanted != 0
        ctx.needs = tuple(ctx.needs_input_grad[:gradients])
        if ctx.in_forward:
            ctx.of = None
            if not torch.compiler.is_compiling() and not eager.dispatch_modes():
                # Where the gradient is in the graph, without memory.
                with torch.enable_grad():
                    ctx.of = next((x[:0].clone() for x, need in zip(args, ctx.needs, strict=False) if need), None)
            save(ctx, weights, *(g if want else None for g, want in zip(made, _flags(wanted, gradients), strict=True)))
        else:
            tensors = [x if isinstance(x, Tensor) else None for x in args]
            ctx.options = [None if isinstance(x, Tensor) else x for x in args]
            save(ctx, *tensors)

    def backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dloss is None:
            return (None,) * (count + 1)
        if not ctx.in_forward:
            args = [x if option is None else option for x, option in zip(saved(ctx), ctx.options, strict=True)]
            made = of_upstream(*args, dloss, _number(ctx.needs))
            grads = [g if need else None for g, need in zip(made, ctx.needs, strict=True)]
            return *grads, *(None,) * (count + 1 - gradients)
        weights, *made = saved(ctx)
        scale = partial(scaled, launchers(dloss).scale_gradient, vocab_size=None)
        in_place = not torch.is_grad_enabled() and not torch._C._autograd._get_current_graph_task_keep_graph()
        counts = weights if weights.numel() else None
        of_sums = _upstream_of_sums(dloss, counts)
        grads = []
        for number, g in enumerate(made):
            if g is None or not ctx.needs[number]:
                grads.append(None)
                continue
            upstream, of_rows = (dloss, counts) if number in _OF_ROWS else (of_sums, None)
            if torch.is_grad_enabled():
                if ctx.of is None:
                    raise RuntimeError(no_second)
                grads.append(NotDifferentiable.apply(g, upstream, of_rows, ctx.of, scale, no_second))
            else:
                grads.append(scale(g, upstream, of_rows, in_place=in_place))
        return *grads, *(None,) * (count + 1 - gradients)

    def backward_kernel(*given: Any) -> tuple[Tensor, ...]:
        *args, dloss, wanted = given
        return or_empty(run(tuple(args), wanted, dloss)[2], args[0])

    setup_backward, raise_no_second = no_gradient(no_second)
    results = ", ".join(["Tensor"] * gradients)
    of_upstream = operator(
        f"{name}_backward({arguments}, Tensor dloss, int wanted) -> ({results})",
        backward_kernel,
        fake=lambda *given: fake_gradients(given[:-2], given[-1]),
        setup=setup_backward,
        backward=raise_no_second,
    )
    with_gradients = operator(
        f"{name}({arguments}, int wanted) -> (Tensor, Tensor, {results})",
        forward,
        fake=fake,
        setup=keep,
        backward=backward,
    )

    def loss(*args: Any) -> Tensor:
        wanted = 0
        if args[reduce] and _in_forward(args):
            wanted = _number([x is not None and x.requires_grad for x in args[:gradients]])
        return with_gradients(*args, wanted)[0]

    return loss


def _upstream_of_sums(dloss: Tensor, counts: Tensor | None) -> Tensor:
    """Return the upstream gradient for what is summed over rows, of any of torch's tensors, as `upstream_of_sums`."""
    if counts is None or (eager.is_eager(dloss) and not eager.is_batched(dloss)):
        return upstream_of_sums(launchers(dloss), dloss, counts)
    return torch.where((counts != 0).any(), dloss, 1.0)


def _number(flags: Sequence[bool]) -> int:
    """Return flags as the bits of a number, which an operator takes."""
    return sum(flag << bit for bit, flag in enumerate(flags))


def _flags(number: int, count: int) -> tuple[bool, ...]:
    """Return the bits of a number."""
    return tuple(bool(number >> bit & 1) for bit in range(count))


def _in_forward(args: tuple[Any, ...]) -> bool:
    """Return whether to compute gradients with the loss; not where a tensor or a product is of float16."""
    dtypes = [arg.dtype if isinstance(arg, Tensor) else arg for arg in args if isinstance(arg, Tensor | torch.dtype)]
    return (
        torch.is_grad_enabled()
        and is_gradient_in_forward()
        and not torch.compiler.is_exporting()
        and not torch._C._are_functorch_transforms_active()
        and torch.float16 not in dtypes
    )


def _layer(tensors: Any, dtype: torch.dtype) -> Linear:
    hidden, weight, bias = tensors
    return Linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias, dtype)


def _divergence(*args: Any) -> tuple[LinearLoss, Linear, Any, str]:
    tensors = args[:7]
    weight, labels, normalizer, divergence, beta, inv_temperature, scale, hard_label_weight = args[7:15]
    vocab_size, student_scale, student_softcap, teacher_scale, teacher_softcap = args[15:20]
    ignore_index, reduce, mean, count, divisor, rows, workspace, student_dtype, teacher_dtype = args[20:]
    hidden = tensors[0]
    student, teacher = _layer(tensors[:3], student_dtype), tensors[6]
    if teacher is None:
        teacher = _layer(tensors[3:6], teacher_dtype)
    options = {
        "divergence": divergence,
        "beta": beta,
        "inv_temperature": inv_temperature,
        "scale": scale,
        "hard_label_weight": hard_label_weight,
        "vocab_size": vocab_size,
        "student_scale": student_scale,
        "student_softcap": student_softcap,
        "teacher_scale": teacher_scale,
        "teacher_softcap": teacher_softcap,
    }
    of = LinearLoss(
        DivergenceOfRows(options, ignore_index),
        vocab_size,
        Tokens(weight, labels),
        Reduced(reduce, mean, 1 / (count * divisor), normalizer),
        (rows, workspace),
        launchers(hidden),
        products.matmul,
    )
    return of, student, teacher, "labels"


linear_distillation_loss = define(
    "linear_distillation_loss",
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor? teacher_hidden, "
    "Tensor? teacher_weight, Tensor? teacher_bias, Tensor? teacher_logits, Tensor? weight, Tensor? labels, "
    "Tensor? normalizer, str divergence, float beta, float inv_temperature, float scale, float hard_label_weight, "
    "SymInt vocab_size, float student_scale, float? student_softcap, float teacher_scale, float? teacher_softcap, "
    "SymInt ignore_index, bool reduce, bool mean, SymInt count, float divisor, SymInt chunk_rows, SymInt workspace, "
    "ScalarType student_dtype, ScalarType teacher_dtype",
    gradients=7,
    reduce=21,
    setup=_divergence,
)


def _cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    *options: Any,
) -> tuple[LinearLoss, Linear, Any, str]:
    ignore_index, label_smoothing, logit_scale, softcap, reduce, mean, rows, workspace, dtype = options
    of = LinearLoss(
        CrossEntropyOfRows(
            {
                "ignore_index": ignore_index,
                "label_smoothing": label_smoothing,
                "logit_scale": logit_scale,
                "softcap": softcap,
            },
            weight.shape[0],
        ),
        weight.shape[0],
        Tokens(labels=labels, class_weight=None if class_weight is None else class_weight.contiguous()),
        Reduced(reduce, mean, 1.0, None),
        (rows, workspace),
        launchers(hidden),
        products.matmul,
    )
    return of, _layer((hidden, weight, bias), dtype), None, "target"


linear_cross_entropy = define(
    "linear_cross_entropy",
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor? class_weight, SymInt ignore_index, "
    "float label_smoothing, float logit_scale, float? softcap, bool reduce, bool mean, SymInt chunk_rows, "
    "SymInt workspace, ScalarType dtype",
    gradients=3,
    reduce=9,
    setup=_cross_entropy,
)
