"""Validation of the arguments of losses of hidden states, for lucid's tensors and for torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lucid import typing
from lucid._arguments import INTEGERS, TensorValidator, check_int, check_real, same_shape
from lucid._loss_args import (
    OPTIONS,
    CrossEntropyConfig,
    DistillationConfig,
    OptionsOfDistillation,
    Reduction,
    check_class_weight,
    check_cross_entropy,
    check_distillation,
    common_columns,
    distillation_config,
    resolved_reduction,
)

#: Names of the options that are not of losses of logits, too.
_LINEAR_OPTIONS = (
    *("student_logit_scale", "teacher_logit_scale", "student_softcap", "teacher_softcap"),
    *("chunk_rows", "workspace_mib"),
)
#: MiB of buffers for a chunk of rows of hidden states, by default.
DEFAULT_WORKSPACE = 256


class LinearDistillationOptions(OptionsOfDistillation):
    """The options of a distillation loss of hidden states."""

    _names = (*OPTIONS, *_LINEAR_OPTIONS)

    def __init__(
        self,
        divergence: typing.Divergence = "forward_kl",
        *,
        beta: float | None = None,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        ignore_index: int | None = None,
        hard_label_weight: float = 0.0,
        reduction: typing.Reduction = "mean",
        vocab_size: int | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        chunk_rows: int | None = None,
        workspace_mib: float | None = None,
    ) -> None:
        super().__init__(
            divergence,
            beta=beta,
            temperature=temperature,
            temperature_squared=temperature_squared,
            ignore_index=ignore_index,
            hard_label_weight=hard_label_weight,
            reduction=reduction,
            vocab_size=vocab_size,
        )
        self.student_logit_scale = student_logit_scale
        self.teacher_logit_scale = teacher_logit_scale
        self.student_softcap = student_softcap
        self.teacher_softcap = teacher_softcap
        self.chunk_rows = chunk_rows
        self.workspace_mib = workspace_mib
        check_linear(**{name: getattr(self, name) for name in _LINEAR_OPTIONS})


def check_linear(*, chunk_rows: int | None, workspace_mib: float | None, **maps: float | None) -> None:
    """Check the options of losses of hidden states; scales and softcaps by name."""
    for name, value in maps.items():
        accepted = "a number from 1e-15 to 1e15"
        if name.endswith("softcap"):
            if value is None:
                continue
            accepted += ", or None"
        check_real(name, value, accepted, lambda x: 1e-15 <= x <= 1e15)
    if chunk_rows is not None and check_int("chunk_rows", chunk_rows) < 1:
        raise ValueError(f"chunk_rows must be a positive int, got {chunk_rows}")
    if workspace_mib is not None:
        check_real("workspace_mib", workspace_mib, "a positive number up to 1e9", lambda x: 0 < x <= 1e9)
        if chunk_rows is not None:
            raise ValueError(
                f"chunk_rows and workspace_mib both set the size of a chunk, got {chunk_rows} and {workspace_mib}: "
                "leave one out"
            )


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """Options of losses of hidden states, resolved: scales, softcaps, dtypes of products, the size of chunks."""

    student_scale: float
    student_softcap: float | None
    teacher_scale: float
    teacher_softcap: float | None
    student_dtype: torch.dtype
    teacher_dtype: torch.dtype
    chunk_rows: int
    workspace: int

    @property
    def maps(self) -> dict[str, float | None]:
        """Arguments of the launchers."""
        names = ("student_scale", "student_softcap", "teacher_scale", "teacher_softcap")
        return {name: getattr(self, name) for name in names}


def linear_distillation(
    tensors: TensorValidator,
    student: tuple[Any, Any, Any],
    teacher: tuple[Any, Any, Any],
    teacher_logits: Any,
    *,
    autocast: tuple[torch.dtype | None, torch.dtype | None],
    weight: Any,
    labels: Any,
    normalizer: Any,
    student_logit_scale: float,
    teacher_logit_scale: float,
    student_softcap: float | None,
    teacher_softcap: float | None,
    chunk_rows: int | None,
    workspace_mib: float | None,
    **options: Any,
) -> tuple[DistillationConfig, LinearOptions, Reduction, Any]:
    """Check all arguments of `linear_distillation_loss`; student and teacher are hidden states, weight and bias.

    `autocast` are the dtypes of their products; None for that of the hidden states.
    """
    checked = check_distillation(**options)
    check_linear(
        chunk_rows=chunk_rows,
        workspace_mib=workspace_mib,
        student_logit_scale=student_logit_scale,
        teacher_logit_scale=teacher_logit_scale,
        student_softcap=student_softcap,
        teacher_softcap=teacher_softcap,
    )
    hidden = student[0]
    check_layer(tensors, "student_", *student)
    if teacher_logits is None:
        if teacher[0] is None or teacher[1] is None:
            missing = "teacher_weight" if teacher[1] is None and teacher[0] is not None else "teacher_hidden"
            raise TypeError(f"{missing} must be a Tensor unless teacher_logits are given, got None")
        check_layer(tensors, "teacher_", *teacher)
        name, given, wide = "teacher_hidden", teacher[0], ("teacher_weight", tuple(teacher[1].shape))
    else:
        for part, value in zip(("hidden", "weight", "bias"), teacher, strict=True):
            if value is not None:
                raise ValueError(f"teacher_{part} must be None where teacher_logits are given: leave one of them out")
        tensors.check_floating("teacher_logits", teacher_logits)
        if not teacher_logits.ndim:
            raise RuntimeError("teacher_logits must have a dimension of columns, got shape ()")
        name, given, wide = "teacher_logits", teacher_logits, ("teacher_logits", tuple(teacher_logits.shape))
    tensors.check_device("student_hidden", hidden, name, given)
    if not same_shape(hidden.shape[:-1], given.shape[:-1]):
        raise RuntimeError(
            f"student_hidden and {name} must have the same leading dimensions, got student_hidden "
            f"{tuple(hidden.shape)} and {name} {tuple(given.shape)}"
        )
    columns = common_columns(("student_weight", tuple(student[1].shape)), wide, options["vocab_size"])
    config = distillation_config(tensors, hidden, columns, checked, weight, labels, False, "student_hidden", **options)
    student_dtype = autocast[0] or tensors.like(hidden).dtype
    teacher_dtype = (autocast[1] if teacher_logits is None else None) or tensors.like(given).dtype
    linear = LinearOptions(
        float(student_logit_scale),
        None if student_softcap is None else float(student_softcap),
        float(teacher_logit_scale),
        None if teacher_softcap is None else float(teacher_softcap),
        student_dtype,
        teacher_dtype,
        *chunk_of_rows(chunk_rows, workspace_mib),
    )
    return config, linear, *resolved_reduction(tensors, options["reduction"], normalizer, hidden, "student_hidden")


def check_layer(tensors: TensorValidator, prefix: str, hidden: Any, weight: Any, bias: Any) -> None:
    """Raise unless hidden states (..., D), a weight (V, D) and a bias (V,) or None fit each other."""
    names = f"{prefix}hidden", f"{prefix}weight", f"{prefix}bias"
    tensors.check_floating(names[0], hidden)
    tensors.check_floating(names[1], weight)
    if not hidden.ndim:
        raise RuntimeError(f"{names[0]} must have a dimension of features, got shape ()")
    if weight.ndim != 2 or not same_shape(weight.shape[1:], hidden.shape[-1:]):
        raise RuntimeError(
            f"{names[1]} must have shape (V, {hidden.shape[-1]}), that of a linear layer of {names[0]} "
            f"{tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    if not weight.shape[0] or not weight.shape[1]:
        raise RuntimeError(f"{names[1]} must not be empty, got shape {tuple(weight.shape)}")
    tensors.check_device(names[0], hidden, names[1], weight)
    if bias is not None:
        tensors.check_floating(names[2], bias)
        if not same_shape(bias.shape, weight.shape[:1]):
            raise RuntimeError(f"{names[2]} must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
        tensors.check_device(names[1], weight, names[2], bias)


def linear_cross_entropy(
    tensors: TensorValidator,
    hidden: Any,
    weight: Any,
    target: Any,
    *,
    bias: Any,
    class_weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    logit_scale: float,
    softcap: float | None,
    chunk_rows: int | None,
    workspace_mib: float | None,
    autocast: torch.dtype | None,
) -> tuple[CrossEntropyConfig, torch.dtype, tuple[int, int]]:
    """Check all arguments of `linear_cross_entropy`; return options, the dtype of the product, the size of chunks."""
    ignored, smoothing = check_cross_entropy(
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    check_linear(chunk_rows=chunk_rows, workspace_mib=workspace_mib, logit_scale=logit_scale, softcap=softcap)
    check_layer(tensors, "", hidden, weight, bias)
    tensors.check("target", target)
    if tensors.like(target).dtype not in INTEGERS:
        raise TypeError(f"target must be labels, int32 or int64, got {target.dtype}")
    if not same_shape(target.shape, hidden.shape[:-1]):
        raise RuntimeError(
            f"target must have shape {tuple(hidden.shape[:-1])}, one label for each row of hidden, got "
            f"{tuple(target.shape)}"
        )
    tensors.check_device("target", target, "hidden", hidden)
    check_class_weight(tensors, "class_weight", class_weight, weight.shape[0], "hidden", hidden)
    dtype = autocast or tensors.like(hidden).dtype
    reduced, _ = resolved_reduction(tensors, reduction, None, hidden, "hidden")
    of = CrossEntropyConfig(hidden, target, False, ignored, smoothing, reduced)
    return of, dtype, chunk_of_rows(chunk_rows, workspace_mib)


def chunk_of_rows(chunk_rows: int | None, workspace_mib: float | None) -> tuple[int, int]:
    """Return the rows of a chunk, or 0 for as many as fit; and the bytes of the workspace for their logits."""
    workspace = DEFAULT_WORKSPACE if workspace_mib is None else workspace_mib
    return 0 if chunk_rows is None else check_int("chunk_rows", chunk_rows), int(workspace * 2**20)
