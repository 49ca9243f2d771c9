"""Gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid._arguments import check_bool
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
    fast_mode: bool = False,
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
    fast_mode
        Compare uᵀ·J·v for the Jacobian J of each output to each input and random vectors u and v, in place of its
        entries: two calls of the function for an input in place of two for each element.

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
    if check_bool("fast_mode", fast_mode):
        return _check_projections(function, args, checked, eps, atol, rtol)
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
    fast_mode: bool = False,
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

    return gradcheck(gradients, (*args, *weights), eps=eps, atol=atol, rtol=rtol, fast_mode=fast_mode)


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


def _check_projections(
    function: Callable[..., Any], args: tuple[Any, ...], checked: list[int], eps: float, atol: float, rtol: float
) -> bool:
    """`gradcheck` of the projections uᵀ·J·v."""
    draw = np.random.default_rng(0)
    outputs = {j: out for j, out in enumerate(_tuple(function(*args))) if out.dtype.is_floating_point}
    seeds = {j: draw.standard_normal(out.shape) for j, out in outputs.items()}
    inputs = [args[i] for i in checked]
    found: dict[int, Sequence[Tensor | None]] = dict.fromkeys(outputs, [None] * len(inputs))
    for j, out in outputs.items():
        if out.requires_grad:
            seed = Tensor(seeds[j], out.dtype, out.device)
            found[j] = grad(out, inputs, seed, retain_graph=True, allow_unused=True)
    for position, i in enumerate(checked):
        direction = draw.standard_normal(args[i].shape)
        above, below = (_tuple(function(*_moved(args, i, sign * eps * direction))) for sign in (1, -1))
        for j, seed in seeds.items():
            numeric = ((above[j].numpy() - below[j].numpy()) * seed).sum() / (2 * eps)
            gradient = found[j][position]
            analytic = 0.0 if gradient is None else (gradient.numpy() * direction).sum()
            if not np.isclose(analytic, numeric, rtol=rtol, atol=atol):
                raise AssertionError(
                    f"a projection of the Jacobian of output {j} to input {i} differs from finite differences: "
                    f"numeric {numeric}, analytic {analytic}"
                )
    return True


def _moved(args: tuple[Any, ...], i: int, change: np.ndarray) -> tuple[Any, ...]:
    """Return the arguments with a change of one of them."""
    moved = Tensor(args[i].detach().numpy() + change, args[i].dtype, args[i].device, True)
    return *args[:i], moved, *args[i + 1 :]


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
    rows = []
    for element in range(args[i].numel()):
        change = np.zeros(args[i].shape)
        change.reshape(-1)[element] = eps
        above, below = (_tuple(function(*_moved(args, i, sign * change)))[j].numpy() for sign in (1, -1))
        rows.append((above - below).reshape(-1) / (2 * eps))
    return np.stack(rows) if rows else np.zeros((0, 1))
