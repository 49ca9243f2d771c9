"""Automatic differentiation: functions, the engine that runs them backward, and checks against finite differences."""

from typing import TYPE_CHECKING

from lucid._docs import left_out, listing
from lucid.autograd.anomaly import detect_anomaly, is_anomaly_enabled, set_detect_anomaly
from lucid.autograd.engine import backward, grad
from lucid.autograd.function import Function
from lucid.autograd.grad_mode import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from lucid.autograd.gradcheck import gradcheck, gradgradcheck

__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]

__dir__ = listing(__all__)

if not TYPE_CHECKING:
    __getattr__ = left_out(__name__)
