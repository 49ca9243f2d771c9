"""Closed-form NumPy references in float64 for losses of logits, and families of rows of logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

DIVERGENCES = ("forward_kl", "reverse_kl", "js", "total_variation")
INF = np.inf


class Truth(NamedTuple):
    """Losses of rows, their gradients, and the magnitudes that their errors are relative to."""

    loss: np.ndarray
    ds: np.ndarray
    dt: np.ndarray
    loss_size: np.ndarray
    ds_size: np.ndarray
    dt_size: np.ndarray


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Return log(exp x / Σ exp x) of each row."""
    with np.errstate(all="ignore"):
        z = x - x.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _times(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return p·x, 0 where p = 0."""
    with np.errstate(all="ignore"):
        return np.where(p == 0, 0.0, p * x)


def divergence(s: np.ndarray, t: np.ndarray, kind: str, beta: float = 0.5, temperature: float = 1.0) -> Truth:
    """Return the divergence of each row of student logits s from teacher logits t (N, V), and its gradients."""
    lq, lp = log_softmax(s / temperature), log_softmax(t / temperature)
    q, p = np.exp(lq), np.exp(lp)
    bits = (1 + np.abs(np.where(q == 0, 0, lq)), 1 + np.abs(np.where(p == 0, 0, lp)))
    q_size, p_size = q * bits[0], p * bits[1]
    if kind == "reverse_kl":
        other = divergence(t, s, "forward_kl", beta, temperature)
        return Truth(other.loss, other.dt, other.ds, other.loss_size, other.dt_size, other.ds_size)
    with np.errstate(all="ignore"):
        if kind == "forward_kl":
            slope = np.where(p == 0, 0.0, lp - lq)
            loss = _times(p, slope).sum(-1)
            ds, dt = q - p, _times(p, slope - loss[:, None])
            spread = np.where(p == 0, 0.0, np.abs(lp) + np.abs(lq) + 1)
            loss_size = _times(p_size, spread).sum(-1)
            ds_size, dt_size = q_size + p_size, _times(p_size, spread + loss_size[:, None])
        elif kind == "js":
            m = beta * p + (1 - beta) * q
            to_q, to_p = np.where(q == 0, 0.0, np.log(q / m)), np.where(p == 0, 0.0, np.log(p / m))
            kq, kp = (q * to_q).sum(-1, keepdims=True), (p * to_p).sum(-1, keepdims=True)
            loss = (beta * kp + (1 - beta) * kq)[:, 0]
            ds, dt = (1 - beta) * q * (to_q - kq), beta * p * (to_p - kp)
            largest = 1 - np.log(min(beta, 1 - beta))
            loss_size = ((q_size + p_size) * largest).sum(-1)
            ds_size, dt_size = q_size * (1 + np.abs(to_q) + largest), p_size * (1 + np.abs(to_p) + largest)
        else:
            sign = np.sign(q - p)
            sq, sp = (q * sign).sum(-1, keepdims=True), (p * sign).sum(-1, keepdims=True)
            loss = 0.5 * np.abs(q - p).sum(-1)
            ds, dt = 0.5 * q * (sign - sq), -0.5 * p * (sign - sp)
            loss_size = (q_size + p_size).sum(-1)
            # Where p and q are nearly equal, the sign of their difference is undetermined.
            unsure = (np.abs(q - p) < 1e-6 * (q_size + p_size)) * 1e7
            ds_size, dt_size = q_size * (2 + unsure), p_size * (2 + unsure)
    return Truth(loss, ds / temperature, dt / temperature, loss_size, ds_size / temperature, dt_size / temperature)


def hard(s: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy of each row with its label, and its gradient."""
    lq = log_softmax(s)
    row = np.arange(len(s))
    ds = np.exp(lq)
    ds[row, labels] -= 1
    return -lq[row, labels], ds


def family(name: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return student and teacher logits, float32, of a family that is hard for some algorithm."""
    s, t = 3 * torch.randn(rows, columns), 3 * torch.randn(rows, columns)
    if name == "close":
        t = s + 0.3 * torch.randn(rows, columns)
    elif name == "nearly equal":
        t = s + 1e-3 * torch.randn(rows, columns)
    elif name == "peaked":
        s, t = (torch.where(torch.rand(rows, columns) < 4 / columns, 80.0, -80.0) + x / 3 for x in (s, t))
    elif name == "peaked and nearly equal":
        s = torch.where(torch.rand(rows, columns) < 4 / columns, 80.0, -80.0) + s / 3
        t = s + 1e-2 * torch.randn(rows, columns)
    elif name == "shifted":
        s, t = s + 1e4, t - 1e4
    elif name == "masked":
        for x in (s, t):
            x[:, ::3] = -INF
        t[:, 1::3] = -INF
    elif name == "constant":
        s, t = torch.full_like(s, 7.0), torch.full_like(t, -3.0)
    elif name == "constant student":
        s = torch.full_like(s, 7.0)
    return s, t


FAMILIES = (
    *("ordinary", "close", "nearly equal", "peaked", "peaked and nearly equal", "shifted", "masked", "constant"),
    "constant student",
)
