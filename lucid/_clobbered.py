"""Logits that a loss has overwritten with its gradient: using their old values is an error, not a wrong number.

The mark is on the base tensor of all views of the memory, so that views have it, too. A buffer of lucid's tensors keeps
it. A tensor of PyTorch may get other values, and be used in parts: its mark is of one view and one version.
"""

from __future__ import annotations

import torch

_ATTRIBUTE = "_lucid_clobbered"
#: Of a tensor of PyTorch: its version, address, shape and strides when it was overwritten.
_OVERWRITTEN = "_lucid_overwritten"
_any_clobbered = False


def mark_clobbered(buffer: torch.Tensor) -> torch.Tensor:
    """Mark the values of `buffer` and of all views of its memory as overwritten; return a buffer for the new ones."""
    global _any_clobbered
    _any_clobbered = True
    # What autograd saved of it was modified in place.
    if not buffer.is_inference():
        torch.autograd.graph.increment_version(buffer)
    setattr(_base(buffer), _ATTRIBUTE, True)
    fresh = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
    return fresh.set_(buffer.untyped_storage(), buffer.storage_offset(), buffer.shape, buffer.stride())


def mark_overwritten(logits: torch.Tensor) -> None:
    """Mark a tensor of PyTorch as overwritten, until it changes again."""
    global _any_clobbered
    _any_clobbered = True
    setattr(_base(logits), _OVERWRITTEN, (logits._version, *_memory(logits)))


def check_not_overwritten(name: str, tensor: torch.Tensor) -> None:
    """Raise a RuntimeError that names the argument if it is the view that was overwritten, and has not changed since.

    Other views, detached tensors and PyTorch's own functions are not checked.
    """
    if torch.compiler.is_compiling() or not _any_clobbered:
        return
    mark = getattr(_base(tensor), _OVERWRITTEN, None)
    if mark is not None and mark == (tensor._version, *_memory(tensor)):
        raise RuntimeError(
            f"{name} was overwritten by the gradient of an earlier loss, with inplace_gradient=True: leave "
            "inplace_gradient out there"
        )


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def check_writable(student: torch.Tensor, teacher: torch.Tensor, *, leaf: bool) -> None:
    """Raise a RuntimeError unless a gradient can be written over the student's logits and nothing else.

    `leaf` says whether autograd has the logits for a leaf, or a view of one.
    """
    if student.is_neg():
        raise RuntimeError(
            "student_logits must be its memory's values for inplace_gradient=True, but has torch's negative bit: pass "
            "student_logits.resolve_neg()"
        )
    if not student.numel():
        return
    reach = 0
    for stride, size in sorted(zip(student.stride(), student.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise RuntimeError(
                "student_logits must not be expanded, or overlap otherwise, for inplace_gradient=True, got strides "
                f"{student.stride()} for shape {tuple(student.shape)}"
            )
        reach += (size - 1) * stride
    if student.untyped_storage().data_ptr() == teacher.untyped_storage().data_ptr():
        raise RuntimeError(
            "student_logits must share no memory with teacher_logits for inplace_gradient=True, but they do: leave it "
            "out"
        )
    if leaf:
        raise RuntimeError(
            "student_logits must not be a leaf that requires grad, or a view of one, for inplace_gradient=True, which "
            "would overwrite it: pass a model's output, or leave inplace_gradient out"
        )


def check_valid(buffer: torch.Tensor) -> torch.Tensor:
    """Return `buffer`; raise a RuntimeError if its values were overwritten."""
    if _any_clobbered and getattr(_base(buffer), _ATTRIBUTE, False):
        raise RuntimeError(
            f"a tensor of shape {tuple(buffer.shape)} was overwritten in place by the gradient of a loss "
            "(inplace_gradient=True); leave inplace_gradient out if its values are needed after the loss"
        )
    return buffer


def _base(buffer: torch.Tensor) -> torch.Tensor:
    return buffer if buffer._base is None else buffer._base
