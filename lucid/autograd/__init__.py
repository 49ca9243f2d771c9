"""Automatic differentiation: functions, the engine that runs them backward, and checks against finite differences."""

from lucid._docs import listing
from lucid.autograd.engine import backward, grad
from lucid.autograd.function import Function
from lucid.autograd.grad_mode import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from lucid.autograd.gradcheck import gradcheck, gradgradcheck

__all__ = [
    "Function",
    "backward",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]

__dir__ = listing(__all__)
