"""How a launcher becomes an operator of PyTorch's dispatcher, in the namespace ``lucid``.

An operator's autograd kernel makes a node of the graph and passes the call on to what lies below: the launcher, a fake
implementation of the compiler, a mode, or a subclass of tensors. Only `torch.func`, which differentiates functions and
not nodes, is met before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

import triton_kernels
from lucid._flags import FlagScope, ThreadLocalFlag
from lucid.torch import cpu
from triton_kernels.runtime import backend

_LIBRARY = torch.library.Library("lucid", "DEF")

#: What each operator calls on real tensors, for who wants to see what a dispatch mode does not: what happens within.
KERNELS: dict[Any, Callable[..., Any]] = {}

_kernels_on_cpu = ThreadLocalFlag(backend.ASKED_FOR)


class kernels_on_cpu(FlagScope):
    """Run the kernels on CPU tensors, in Triton's interpreter; a context manager and a decorator.

    CPU tensors otherwise go through torch's own operators, which take 1/25 to 1/160 of the time; the interpreter is for
    verifying kernels. It is the default where the environment has ``TRITON_INTERPRET=1`` before Python starts. The
    switch holds for a thread. Backward runs as forward did in eager autograd; for a compiled graph hold it for both.

    Parameters
    ----------
    enabled : bool
        Whether the kernels run on CPU tensors within. Default: True.

    Raises
    ------
    RuntimeError
        If kernels are compiled for a GPU in this process.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> s, t = torch.tensor([[0.5, 1.0, 0.2]]), torch.tensor([[0.3, 0.9, 0.4]])
    >>> with lucid.torch.kernels_on_cpu():  # doctest: +SKIP
    ...     f"{lucid.torch.distillation_loss(s, t).item():.6f}"
    '0.011704'
    """

    _flag = _kernels_on_cpu

    def __init__(self, enabled: bool = True) -> None:
        if enabled and not backend.INTERPRETED:
            raise RuntimeError(
                "kernels are compiled for the GPU here: set TRITON_INTERPRET=1 before Python starts to run them on CPU "
                "tensors"
            )
        super().__init__(enabled)


def launchers(tensor: torch.Tensor) -> Any:
    """What has the launchers for a tensor: the kernels, or the same with torch's operators."""
    return cpu if tensor.device.type == "cpu" and not _kernels_on_cpu.enabled else triton_kernels


def operator(
    schema: str,
    kernel: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    devices: tuple[str, ...] = ("CPU", "CUDA"),
) -> Callable[..., Any]:
    """Define ``lucid::NAME`` and return what calls it, with all arguments by position.

    Parameters
    ----------
    schema
        ``NAME(arguments) -> results``, without defaults and keyword-only arguments.
    kernel
        Launches: torch tensors in, fresh torch tensors out.
    fake
        Makes the same results without values: shapes, strides, dtypes.
    setup, backward
        As `torch.autograd.Function.setup_context` and ``backward``. Where nothing is differentiable, `backward` raises
        why.
    devices
        Of what kernel takes.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for key in devices:
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"lucid::{name}", fake, lib=_LIBRARY)
    overload = getattr(torch.ops.lucid, name).default
    KERNELS[overload] = kernel

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        outputs = below_autograd(*args)
        setup_here(ctx, args, outputs)
        return outputs

    def setup_here(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels_on_cpu = _kernels_on_cpu.enabled
        setup(ctx, inputs, output)

    def backward_there(ctx: Any, *grads: Any) -> Any:
        if ctx.kernels_on_cpu == _kernels_on_cpu.enabled:
            return backward(ctx, *grads)
        with kernels_on_cpu(ctx.kernels_on_cpu):
            return backward(ctx, *grads)

    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"losses of lucid.torch have no forward-mode derivatives (jvp), here of {name}")

    methods = {"forward": forward, "backward": backward_there, "jvp": jvp}
    node: Any = type(name, (Function,), {key: staticmethod(method) for key, method in methods.items()})

    def autograd(*args: Any) -> Any:
        return node.apply(*args) if torch.is_grad_enabled() else below_autograd(*args)

    _LIBRARY.impl(name, autograd, "Autograd")

    def one_by_one(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        results = []
        for i in range(info.batch_size):
            given = zip(args, in_dims, strict=True)
            results.append(overload(*(arg if dim is None else arg.select(dim, i) for arg, dim in given)))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])

    torch.library.register_vmap(f"lucid::{name}", one_by_one, lib=_LIBRARY)
    methods = {"forward": overload, "setup_context": setup_here, "backward": backward_there, "jvp": jvp}
    transformed: Any = type(
        f"{name}_transformed",
        (Function,),
        {key: staticmethod(method) for key, method in methods.items()} | {"generate_vmap_rule": True},
    )

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*args)
        if torch._C._are_functorch_transforms_active():
            return transformed.apply(*args)
        return autograd(*args)  # where the dispatcher would come to, after a detour

    return call


def no_gradient(reason: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    """`setup` and `backward` of what has no derivatives."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(reason)

    return lambda ctx, inputs, output: None, backward
