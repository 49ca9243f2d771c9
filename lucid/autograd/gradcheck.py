"""Gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid.autograd.engine import grad
from lucid.autograd.grad_mode import no_grad
from lucid.tensor import Tensor


def gradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare the gradients of a function with central differences.

    For each output and each float64 input that requires grad, every entry of the Jacobian ∂out_j/∂in_i must lie
    within atol + rtol·|n| of n = (out_j(in_i + eps) − out_j(in_i − eps)) / (2·eps).

    Parameters
    ----------
    function
        Takes `inputs`, returns a Tensor or a tuple of them.
    inputs
        Its arguments; the Tensors among them that require grad must be float64.

    Returns
    -------
    bool
        True.

    Raises
    ------
    ValueError
        If no input requires grad, or one that does is not float64.
    AssertionError
        At the first Jacobian that differs, which it shows.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([0.5, -1.0], dtype="float64", requires_grad=True)
    >>> lucid.autograd.gradcheck(lambda x: (x * x).sum(), x)
    True
    """
    args, checked = _checked(inputs)
    for j, output in enumerate(_tuple(function(*args))):
        if not output.dtype.is_floating_point:
            continue
        analytic = _analytic(output, [args[i] for i in checked])
        for position, i in enumerate(checked):
            numeric = _numeric(function, args, i, j, eps)
            if not np.allclose(analytic[position], numeric, rtol=rtol, atol=atol):
                raise AssertionError(
                    f"the Jacobian of output {j} to input {i} differs from finite differences:\n"
                    f"numeric\n{numeric}\nanalytic\n{analytic[position]}"
                )
    return True


def gradgradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """As `gradcheck`, for the gradients themselves: second derivatives, to the inputs and to the outputs' gradients.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([0.5, -1.0], dtype="float64", requires_grad=True)
    >>> lucid.autograd.gradgradcheck(lambda x: x * x * x, x)
    True
    """
    args, checked = _checked(inputs)
    with no_grad():
        outputs = _tuple(function(*args))
    draw = np.random.default_rng(0)
    weights = [Tensor(draw.standard_normal(out.shape), out.dtype, out.device, True) for out in outputs]

    def gradients(*all_args: Any) -> tuple[Any, ...]:
        primal, outer = all_args[: len(args)], all_args[len(args) :]
        results = _tuple(function(*primal))
        found = grad(results, [primal[i] for i in checked], outer, create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(gradients, (*args, *weights), eps=eps, atol=atol, rtol=rtol)


def _checked(inputs: Tensor | Sequence[Any]) -> tuple[tuple[Any, ...], list[int]]:
    """The inputs, and the places of those to check."""
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad]
    if not checked:
        raise ValueError("inputs must hold a Tensor that requires grad, got none")
    for i in checked:
        if args[i].dtype.name != "float64":
            raise ValueError(f"input {i} must be float64 for finite differences, got {args[i].dtype}")
    return args, checked


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _analytic(output: Tensor, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """The Jacobians of one output, (elements of the input, elements of the output), a column at a time."""
    jacobians = [np.zeros((x.numel(), output.numel())) for x in inputs]
    # An output that is not connected has gradients of zero, which the differences must show, too.
    for j in range(output.numel() if output.requires_grad else 0):
        one_hot = np.zeros(output.numel())
        one_hot[j] = 1
        seed = Tensor(one_hot.reshape(output.shape), output.dtype, output.device)
        for jacobian, found in zip(
            jacobians, grad(output, inputs, seed, retain_graph=True, allow_unused=True), strict=True
        ):
            if found is not None:
                jacobian[:, j] = found.numpy().reshape(-1)
    return jacobians


def _numeric(function: Callable[..., Any], args: tuple[Any, ...], i: int, j: int, eps: float) -> np.ndarray:
    base = args[i].detach().clone().numpy()
    rows = []
    for element in range(base.size):
        shifted = []
        for sign in (eps, -eps):
            moved = base.copy()
            moved.reshape(-1)[element] += sign
            argument = Tensor(moved, args[i].dtype, args[i].device, True)
            shifted.append(_tuple(function(*args[:i], argument, *args[i + 1 :]))[j].numpy().reshape(-1))
        rows.append((shifted[0] - shifted[1]) / (2 * eps))
    return np.stack(rows) if rows else np.zeros((0, 1))
