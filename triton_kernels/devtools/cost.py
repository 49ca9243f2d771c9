"""Roofline lower bounds per op: bytes of memory traffic and floating-point operations.

Every distinct byte that a result depends on is read once and every byte of a result is written once. Exponential,
logarithm, comparison and division count one operation each, like an addition; factors that are the same for all
elements count none. Only shapes, strides and dtypes of tensors matter, so they may be on the meta device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes read, bytes written, and floating-point operations."""

    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read + other.read, self.written + other.written, self.flops + other.flops)


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of memory that a tensor's elements occupy; those of an expanded dimension count once.

    >>> distinct_bytes(torch.zeros(3, 1, dtype=torch.float16).expand(3, 5))
    6
    """
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.dtype.itemsize * math.prod(min(size, 1) if stride == 0 else size for size, stride in sizes)


def kl_div_forward(x: torch.Tensor, target: torch.Tensor, *, reduce: bool = True) -> Cost:
    """Cost of pointwise KL(target ‖ exp x): both operands read; one result written, or one per element.

    >>> x = torch.empty(41, 1271, dtype=torch.bfloat16, device="meta")
    >>> kl_div_forward(x, x)
    Cost(read=208444, written=2, flops=208444)
    """
    numel = math.prod(torch.broadcast_shapes(x.shape, target.shape))
    itemsize = torch.promote_types(x.dtype, target.dtype).itemsize
    written = itemsize * (1 if reduce else numel)
    # log or exp, subtraction, multiplication; and the sum
    return Cost(distinct_bytes(x) + distinct_bytes(target), written, numel * (4 if reduce else 3))


def kl_div_backward(
    x: torch.Tensor,
    target: torch.Tensor,
    dloss: torch.Tensor,
    *,
    log_target: bool = False,
    to_x: bool = True,
    to_target: bool = False,
) -> Cost:
    """Cost of the gradients of pointwise KL: target and dloss read, x only for the target's; gradients written.

    >>> x, one = torch.empty(41, 1271, device="meta"), torch.empty((), device="meta")
    >>> kl_div_backward(x, x, one)
    Cost(read=208448, written=208444, flops=52111)
    """
    numel = math.prod(torch.broadcast_shapes(x.shape, target.shape))
    read = distinct_bytes(target) + distinct_bytes(dloss) + (distinct_bytes(x) if to_target else 0)
    written = sum(t.numel() * t.dtype.itemsize for t, wanted in ((x, to_x), (target, to_target)) if wanted)
    # −p·g; log p − x + 1, times g; and where the target is log p, one exponential for both and one more product
    flops = to_x + 4 * to_target + log_target * (1 + to_target) if to_x or to_target else 0
    return Cost(read, written, numel * flops)


def softmax_forward(x: torch.Tensor) -> Cost:
    """Cost of softmax or log-softmax: read once, written once.

    >>> softmax_forward(torch.empty(8, 32000, device="meta"))
    Cost(read=1024000, written=1024000, flops=1280000)
    """
    # maximum, subtraction, exponential, sum; and a quotient, or a difference
    return Cost(distinct_bytes(x), x.numel() * x.dtype.itemsize, 5 * x.numel())


def softmax_backward(y: torch.Tensor, dy: torch.Tensor) -> Cost:
    """Cost of the gradient of softmax or log-softmax, from the output: two operands read, one gradient written.

    >>> y = torch.empty(8, 32000, dtype=torch.float16, device="meta")
    >>> softmax_backward(y, y)
    Cost(read=1024000, written=512000, flops=1024000)
    """
    # product, sum, subtraction, product; or sum, exponential, product, subtraction
    return Cost(distinct_bytes(y) + distinct_bytes(dy), y.numel() * y.dtype.itemsize, 4 * y.numel())


def divergence_forward(
    student: torch.Tensor, teacher: torch.Tensor, *, reduce: bool = True, gradient: bool = False
) -> Cost:
    """Cost of a divergence of logits: both read once; one loss written, or one per row, in float32 (or float64).

    With `gradient`, that of the student for an upstream gradient of 1 is written, too.

    >>> logits = torch.empty(8, 32000, dtype=torch.bfloat16, device="meta")
    >>> divergence_forward(logits, logits)
    Cost(read=1024000, written=4, flops=2560000)
    >>> divergence_forward(logits, logits, gradient=True)
    Cost(read=1024000, written=512004, flops=3328000)
    """
    itemsize = 8 if torch.float64 in (student.dtype, teacher.dtype) else 4
    # per softmax: maximum, difference, exponential, sum; then a difference, and a product with p, added up
    flops = 10 * student.numel()
    written = itemsize * (1 if reduce else math.prod(student.shape[:-1]))
    loss = Cost(distinct_bytes(student) + distinct_bytes(teacher), written, flops)
    # of each exponential a product, and a difference
    return loss + Cost(0, student.numel() * student.dtype.itemsize, 3 * student.numel()) if gradient else loss


def cross_entropy_forward(
    x: torch.Tensor, labels: torch.Tensor, *, reduce: bool = True, gradient: bool = False
) -> Cost:
    """Cost of cross-entropy with labels: logits and labels read once; one loss written, or one per row.

    With `gradient`, that for an upstream gradient of 1 is written, too.

    >>> logits, labels = torch.empty(8, 32000, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    >>> cross_entropy_forward(logits, labels)
    Cost(read=1024064, written=4, flops=1024000)
    >>> cross_entropy_forward(logits, labels, gradient=True)
    Cost(read=1024064, written=1024004, flops=1280000)
    """
    itemsize = 8 if x.dtype is torch.float64 else 4
    # maximum, difference, exponential, sum
    written = itemsize * (1 if reduce else math.prod(x.shape[:-1]))
    loss = Cost(distinct_bytes(x) + distinct_bytes(labels), written, 4 * x.numel())
    # of the exponential a product
    return loss + Cost(0, x.numel() * x.dtype.itemsize, x.numel()) if gradient else loss


def scale_gradient(gradient: torch.Tensor, dloss: torch.Tensor, *, one: bool = False) -> Cost:
    """Cost of a gradient that was computed with the loss, times dloss, in place: read and written; not if dloss is 1.

    >>> gradient, dloss = torch.empty(8, 32000, dtype=torch.bfloat16, device="meta"), torch.empty((), device="meta")
    >>> scale_gradient(gradient, dloss)
    Cost(read=512004, written=512000, flops=256000)
    >>> scale_gradient(gradient, dloss, one=True)
    Cost(read=4, written=0, flops=0)
    """
    moved, flops = (0, 0) if one else (gradient.numel() * gradient.dtype.itemsize, gradient.numel())
    return Cost(moved + distinct_bytes(dloss), moved, flops)


def cross_entropy_backward(x: torch.Tensor, labels: torch.Tensor, dloss: torch.Tensor) -> Cost:
    """Cost of the gradient of cross-entropy: logits, labels and dloss read once, one gradient written.

    >>> logits, labels = torch.empty(8, 32000, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    >>> cross_entropy_backward(logits, labels, torch.empty((), device="meta"))
    Cost(read=1024068, written=1024000, flops=768000)
    """
    read = distinct_bytes(x) + distinct_bytes(labels) + distinct_bytes(dloss)
    # difference, exponential, product
    return Cost(read, x.numel() * x.dtype.itemsize, 3 * x.numel())


def divergence_backward(student: torch.Tensor, teacher: torch.Tensor, dloss: torch.Tensor) -> Cost:
    """Cost of a divergence's gradient to the student: both logits and dloss read once, one gradient written.

    >>> logits, one = torch.empty(8, 32000, dtype=torch.bfloat16, device="meta"), torch.empty((), device="meta")
    >>> divergence_backward(logits, logits, one)
    Cost(read=1024004, written=512000, flops=1536000)
    """
    read = distinct_bytes(student) + distinct_bytes(teacher) + distinct_bytes(dloss)
    # per softmax: difference, exponential; then a difference and a product
    return Cost(read, student.numel() * student.dtype.itemsize, 6 * student.numel())
