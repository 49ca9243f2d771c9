"""Validation of the arguments of losses of logits, for lucid's tensors and for torch's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lucid import typing
from lucid._arguments import (
    FLOATING,
    INTEGERS,
    TensorValidator,
    check_bool,
    check_choice,
    check_int,
    check_real,
    same_shape,
    type_name,
)

#: Defaults of `beta` and `ignore_index`.
DEFAULT_BETA, DEFAULT_IGNORED = 0.5, -100
#: Names of the options that distillation losses of logits and of hidden states share, and that are not tensors.
OPTIONS = (
    *("divergence", "beta", "temperature", "temperature_squared", "ignore_index", "hard_label_weight", "reduction"),
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Reduction:
    """Reduction of per-token losses.

    None (`reduce` False), or their sum divided by the sum of weights (if `mean`), by `count` (number of rows) and by
    `normalizer`.
    """

    reduce: bool
    mean: bool = False
    count: int = 1
    normalizer: float = 1.0

    @property
    def scale(self) -> float:
        """Factor on the sum that does not depend on values in device memory."""
        return 1 / (self.count * self.normalizer)


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """Non-tensor options of `triton_kernels.divergence_forward`, resolved."""

    divergence: str
    beta: float
    inv_temperature: float
    scale: float
    ignore_index: int
    hard_label_weight: float
    vocab_size: int
    inplace_gradient: bool

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of both launchers."""
        names = ("divergence", "beta", "inv_temperature", "scale", "hard_label_weight", "vocab_size")
        return {name: getattr(self, name) for name in names}


class OptionsOfDistillation:
    """The options of a distillation loss as attributes of a module, which are read, and checked, at every call."""

    _names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        divergence: typing.Divergence,
        *,
        beta: float | None,
        temperature: float,
        temperature_squared: bool,
        ignore_index: int | None,
        hard_label_weight: float,
        reduction: typing.Reduction,
        vocab_size: int | None,
    ) -> None:
        super().__init__()
        self.divergence = divergence
        self.beta = beta
        self.temperature = temperature
        self.temperature_squared = temperature_squared
        self.ignore_index = ignore_index
        self.hard_label_weight = hard_label_weight
        self.reduction = reduction
        self.vocab_size = vocab_size
        check_distillation(**{name: getattr(self, name) for name in OPTIONS})

    @property
    def ignored_label(self) -> int:
        """The label of tokens that do not count: `ignore_index`, or -100."""
        return DEFAULT_IGNORED if self.ignore_index is None else self.ignore_index

    @property
    def options(self) -> dict[str, Any]:
        """By the names that functions give them."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """The options that shape the result, and those of the others that are not as by default."""
        shown: dict[str, object] = {"divergence": self.divergence}
        if self.divergence == "js":
            shown["beta"] = DEFAULT_BETA if self.beta is None else self.beta
        shown |= {"temperature": self.temperature, "reduction": self.reduction}
        others = (name for name in self._names if name not in ("beta", "ignore_index", *shown))
        # Those that are as by default: None, False, 0, or a scale of 1.
        shown |= {name: value for name in others if (value := getattr(self, name)) and not _is_scale_of_1(name, value)}
        if self.ignore_index not in (None, DEFAULT_IGNORED):
            shown["ignore_index"] = self.ignore_index
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _is_scale_of_1(name: str, value: Any) -> bool:
    return name.endswith("_scale") and value == 1


class DistillationOptions(OptionsOfDistillation):
    """The options of a distillation loss of logits."""

    _names = (*OPTIONS, "inplace_gradient")

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
        inplace_gradient: bool = False,
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
        self.inplace_gradient = inplace_gradient
        check_bool("inplace_gradient", inplace_gradient)


def check_distillation(
    *,
    divergence: str,
    beta: float | None,
    temperature: float,
    temperature_squared: bool,
    ignore_index: int | None,
    hard_label_weight: float,
    reduction: str,
    vocab_size: int | None,
) -> tuple[float, float, float]:
    """Check the non-tensor options; return beta, the temperature and the weight of hard labels."""
    check_choice("divergence", divergence, typing.DIVERGENCES)
    check_choice("reduction", reduction, typing.REDUCTIONS)
    check_bool("temperature_squared", temperature_squared)
    if ignore_index is not None:
        check_int("ignore_index", ignore_index)
    if vocab_size is not None and check_int("vocab_size", vocab_size) < 1:
        raise ValueError(f"vocab_size must be a positive int, got {vocab_size}")
    temperature = check_real("temperature", temperature, "a number from 1e-15 to 1e15", lambda x: 1e-15 <= x <= 1e15)
    alpha = check_real("hard_label_weight", hard_label_weight, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    return _beta(divergence, beta), temperature, alpha


def _beta(divergence: str, beta: float | None) -> float:
    if beta is None:
        return DEFAULT_BETA
    if divergence != "js":
        raise ValueError(f"beta is of divergence 'js' alone, got beta={beta} for {divergence!r}: leave it out")
    accepted = "a number in the open interval (0, 1)"
    beta = check_real("beta", beta, accepted, lambda x: 0 <= x <= 1)
    if beta in (0, 1):
        other = "reverse_kl" if beta else "forward_kl"
        raise ValueError(f"beta must be {accepted}, got {beta}: for that pass divergence={other!r} and no beta")
    return beta


def distillation(
    tensors: TensorValidator,
    student: Any,
    teacher: Any,
    *,
    weight: Any,
    labels: Any,
    normalizer: Any,
    inplace_gradient: bool,
    **options: Any,
) -> tuple[DistillationConfig, Reduction, Any]:
    """Check all arguments of `distillation_loss`; return the resolved options and the normalizer if it is a tensor."""
    checked = check_distillation(**options)
    in_place = check_bool("inplace_gradient", inplace_gradient)
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        tensors.check_floating(name, logits)
        if not logits.ndim:
            raise RuntimeError(f"{name} must have a dimension of columns, got shape ()")
    tensors.check_device("student_logits", student, "teacher_logits", teacher)
    if not same_shape(student.shape[:-1], teacher.shape[:-1]):
        raise RuntimeError(
            "student_logits and teacher_logits must have the same leading dimensions, got student_logits "
            f"{tuple(student.shape)} and teacher_logits {tuple(teacher.shape)}"
        )
    columns = common_columns(
        ("student_logits", tuple(student.shape)), ("teacher_logits", tuple(teacher.shape)), options["vocab_size"]
    )
    config = distillation_config(
        tensors, student, columns, checked, weight, labels, in_place and student.requires_grad, **options
    )
    return config, *resolved_reduction(tensors, options["reduction"], normalizer, student)


def distillation_config(
    tensors: TensorValidator,
    rows: Any,
    columns: int,
    checked: tuple[float, float, float],
    weight: Any,
    labels: Any,
    in_place: bool,
    rows_name: str = "student_logits",
    *,
    divergence: str,
    temperature_squared: bool,
    ignore_index: int | None,
    **_: Any,
) -> DistillationConfig:
    """Check weights and labels of rows (..., anything); return the resolved options."""
    beta, temperature, alpha = checked
    tensors.check_tokens("weight", weight, rows, "bool or floating", (*FLOATING, torch.bool), rows_name)
    tensors.check_tokens("labels", labels, rows, "int32 or int64", INTEGERS, rows_name)
    if alpha and labels is None:
        raise ValueError(f"labels must be given for a hard_label_weight of {alpha}, got None")
    if ignore_index is not None and labels is None:
        raise ValueError(f"labels must be given for an ignore_index of {ignore_index}, got None: or leave both out")
    return DistillationConfig(
        # Of weight 0 where alpha is 1: one that is never infinite.
        divergence="total_variation" if alpha == 1 else divergence,
        beta=beta,
        inv_temperature=1 / temperature,
        scale=temperature * temperature if temperature_squared else 1.0,
        ignore_index=DEFAULT_IGNORED if ignore_index is None else check_int("ignore_index", ignore_index),
        hard_label_weight=alpha,
        vocab_size=columns,
        inplace_gradient=in_place,
    )


def check_deprecated(name: str, value: Any) -> None:
    """Raise TypeError unless size_average or reduce is a bool or None; a reduction by position lands there."""
    if value is not None and not isinstance(value, bool | np.bool_):
        remedy = f": pass reduction={value!r}" if value in typing.REDUCTIONS else ""
        raise TypeError(f"{name} must be a bool or None, got {type_name(value)}{remedy}")


def check_cross_entropy(*, ignore_index: int, reduction: str, label_smoothing: float) -> tuple[int, float]:
    """Check the non-tensor options; return the ignored label and the smoothing."""
    check_choice("reduction", reduction, typing.LABEL_REDUCTIONS)
    smoothing = check_real("label_smoothing", label_smoothing, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    return check_int("ignore_index", ignore_index), smoothing


@dataclass(frozen=True, slots=True)
class CrossEntropyConfig:
    """Resolved arguments: logits (..., C), and labels (...), or probabilities (..., C) if `soft`."""

    logits: Any
    target: Any
    soft: bool
    ignore_index: int
    label_smoothing: float
    reduction: Reduction


def cross_entropy(
    tensors: TensorValidator,
    x: Any,
    target: Any,
    weight: Any,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    name: str = "x",
) -> CrossEntropyConfig:
    """Check all arguments of `cross_entropy`; `name` is the name of x in messages."""
    ignored, smoothing = check_cross_entropy(
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    tensors.check_floating(name, x)
    if not x.ndim:
        raise RuntimeError(f"{name} must have a dimension of classes, got shape ()")
    classes = min(x.ndim - 1, 1)
    if not x.shape[classes]:
        raise RuntimeError(f"{name} must have at least one class, got shape {tuple(x.shape)}")
    logits = _classes_last(x)
    tensors.check("target", target)
    soft = tensors.like(target).dtype in FLOATING
    if soft:
        _check_probabilities(tensors, target, x, name, ignored)
        target = _classes_last(target)
    elif tensors.like(target).dtype not in INTEGERS:
        raise TypeError(
            "target must be labels, int32 or int64, or class probabilities, float16, bfloat16, float32 or float64, got "
            f"{target.dtype}"
        )
    elif same_shape(target.shape, x.shape):
        raise TypeError(f"target of {name}'s shape is class probabilities, which must be floating, got {target.dtype}")
    else:
        _check_labels(tensors, target, x, name, classes)
    check_class_weight(tensors, "weight", weight, x.shape[classes], name, x)
    if soft and reduction == "mean":
        reduced = Reduction(reduce=True, count=max(math.prod(logits.shape[:-1]), 1))
    else:
        reduced, _ = resolved_reduction(tensors, reduction, None, logits)
    return CrossEntropyConfig(logits, target, soft, ignored, smoothing, reduced)


def check_class_weight(
    tensors: TensorValidator, name: str, weight: Any, classes: int, other_name: str, other: Any
) -> None:
    """Raise unless weights of classes are None or fit."""
    if weight is None:
        return
    tensors.check_floating(name, weight)
    tensors.check_device(name, weight, other_name, other)
    if weight.shape != (classes,):
        raise RuntimeError(f"{name} must have shape ({classes},), one for each class, got {tuple(weight.shape)}")
    tensors.check_constant(name, weight)


def _classes_last(x: Any) -> Any:
    """(N, C, ...) as (N, ..., C)."""
    return x if x.ndim <= 2 else x.permute(0, *range(2, x.ndim), 1)


def _check_labels(tensors: TensorValidator, target: Any, x: Any, name: str, classes: int) -> None:
    shape, got = tuple(x.shape), tuple(target.shape)
    expected = shape[:classes] + shape[classes + 1 :]
    if not same_shape(got, expected):
        remedy = ""
        if len(got) > 1 and got == shape[:-1]:
            order = 0, len(got), *range(1, len(got))
            remedy = f": where the classes are last pass {name}.permute{order}"
        raise RuntimeError(
            f"target must have shape {expected}, that of {name} {shape} without dimension {classes}, the classes, got "
            f"{got}{remedy}"
        )
    tensors.check_device("target", target, name, x)


def _check_probabilities(tensors: TensorValidator, target: Any, x: Any, name: str, ignored: int) -> None:
    if not same_shape(target.shape, x.shape):
        raise RuntimeError(
            f"target of class probabilities must have {name}'s shape {tuple(x.shape)}, got {tuple(target.shape)} of "
            f"{target.dtype}: labels must be int32 or int64"
        )
    tensors.check_device("target", target, name, x)
    if ignored != DEFAULT_IGNORED:
        raise ValueError(f"ignore_index is of labels alone, got {ignored} with class probabilities: leave it out")


def common_columns(
    student: tuple[str, tuple[int, ...]], teacher: tuple[str, tuple[int, ...]], vocab_size: int | None
) -> int:
    """The number of logits that count, from names and shapes: (V, D) of weights, else (..., V)."""
    (name_s, shape_s), (name_t, shape_t) = student, teacher
    unit_s = "rows" if name_s == "student_weight" else "columns"
    unit_t = "rows" if name_t == "teacher_weight" else "columns"
    widths = shape_s[0 if unit_s == "rows" else -1], shape_t[0 if unit_t == "rows" else -1]
    if vocab_size is None:
        if widths[0] != widths[1]:
            what = f"equally many {unit_s}" if unit_s == unit_t else f"as many {unit_s} as {unit_t}"
            raise RuntimeError(
                f"{name_s} and {name_t} must have {what} unless vocab_size says how many count, got {widths[0]} and "
                f"{widths[1]}"
            )
        if not widths[0]:
            raise RuntimeError(f"{name_s} must have at least one column, got shape {shape_s}")
        return widths[0]
    columns = check_int("vocab_size", vocab_size)
    if columns > min(widths):
        have = "have" if unit_s == "columns" else "has"
        raise ValueError(
            f"vocab_size must lie in 1 to {min(widths)}, got {columns}; {name_s} {have} {widths[0]} {unit_s} and "
            f"{name_t} {widths[1]}" + ("" if unit_s == unit_t else f" {unit_t}")
        )
    return columns


def resolved_reduction(
    tensors: TensorValidator, reduction: str, normalizer: Any, logits: Any, name: str = "student_logits"
) -> tuple[Reduction, Any]:
    """The reduction, and the denominator where it is a tensor."""
    if reduction == "batchmean" and normalizer is None and logits.ndim < 2:
        raise RuntimeError(
            f"reduction 'batchmean' divides by {name}.shape[0], a number of rows, got shape {tuple(logits.shape)}"
        )
    if normalizer is None:
        count = max(logits.shape[0], 1) if reduction == "batchmean" else 1
        return Reduction(reduce=reduction != "none", mean=reduction == "mean", count=count), None
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"normalizer requires reduction 'mean' or 'batchmean', got {reduction!r}")
    if not any(isinstance(normalizer, kind) for kind in (tensors.kind, *tensors.others)):
        accepted = "a positive number, 0 where no token counts, or a 0-d Tensor"
        divisor = check_real("normalizer", normalizer, accepted, lambda x: x >= 0)
        if divisor > 0:
            return Reduction(reduce=True, normalizer=divisor), None
        # Whether a token counts is known on the device.
        return Reduction(reduce=True), tensors.wrap(torch.zeros((), device=tensors.like(logits).device))
    tensors.check("normalizer", normalizer)
    if normalizer.shape != ():
        raise RuntimeError(f"normalizer must be a positive number or a 0-d Tensor, got shape {tuple(normalizer.shape)}")
    if tensors.like(normalizer).dtype not in (*FLOATING, *INTEGERS):
        raise TypeError(f"normalizer must be a positive number or a 0-d Tensor of numbers, got {normalizer.dtype}")
    tensors.check_device("normalizer", normalizer, name, logits)
    tensors.check_constant("normalizer", normalizer)
    return Reduction(reduce=True), normalizer
