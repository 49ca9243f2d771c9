"""Registration of launchers as operators of PyTorch's dispatcher, in the namespace ``lucid``.

The autograd kernel of an operator makes a node of the graph and passes the call on to the keys below: the launcher, a
fake implementation of the compiler, a mode, or a subclass of tensors. `torch.func`, which differentiates functions and
not nodes, is handled before the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import Function

import triton_kernels
from lucid._flags import FlagScope, ThreadLocalFlag
from lucid.torch import cpu
from triton_kernels.runtime import backend

_LIBRARY = torch.library.Library("lucid", "DEF")

#: The function that each operator calls on real tensors; tests and perf use it to look inside an operator.
KERNELS: dict[Any, Callable[..., Any]] = {}

_kernels_on_cpu = ThreadLocalFlag(backend.INTERPRETER_REQUESTED)


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
        super().__init__(enabled)
        if enabled and not backend.INTERPRETED:
            raise RuntimeError(
                "kernels are compiled for the GPU here: set TRITON_INTERPRET=1 before Python starts to run them on CPU "
                "tensors"
            )


def launchers(tensor: torch.Tensor) -> Any:
    """Return the namespace of launchers for a tensor: `triton_kernels`, or `lucid.torch.cpu` with torch's operators."""
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
        Methods of a `torch.autograd.Function`. Where nothing is differentiable, `backward` raises
        an error.
    devices
        Dispatch keys of the devices whose tensors the kernel takes.
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
        setup_context(ctx, args, outputs)
        return outputs

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels_on_cpu = _kernels_on_cpu.enabled
        setup(ctx, inputs, output)

    def backward_as_forward(ctx: Any, *grads: Any) -> Any:
        if ctx.kernels_on_cpu == _kernels_on_cpu.enabled:
            return backward(ctx, *grads)
        with kernels_on_cpu(ctx.kernels_on_cpu):
            return backward(ctx, *grads)

    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"losses of lucid.torch have no forward-mode derivatives (jvp), here of {name}")

    methods = {"forward": forward, "backward": backward_as_forward, "jvp": jvp}
    node: Any = type(name, (Function,), {key: staticmethod(method) for key, method in methods.items()})

    def autograd(*args: Any) -> Any:
        return node.apply(*args) if torch.is_grad_enabled() else below_autograd(*args)

    _LIBRARY.impl(name, autograd, "Autograd")

    def vmap_loop(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        results = []
        for i in range(info.batch_size):
            given = zip(args, in_dims, strict=True)
            results.append(overload(*(arg if dim is None else arg.select(dim, i) for arg, dim in given)))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])

    torch.library.register_vmap(f"lucid::{name}", vmap_loop, lib=_LIBRARY)
    methods = {"forward": overload, "setup_context": setup_context, "backward": backward_as_forward, "jvp": jvp}
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
        return autograd(*args)  # skips the dispatcher; same kernel

    return call


def no_gradient(reason: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Return `setup` and `backward` of an operator without derivatives, which raises `reason`."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(reason)

    return lambda ctx, inputs, output: None, backward


def save(ctx: Any, *tensors: torch.Tensor | None) -> None:
    """Save tensors for the backward pass of a `torch.autograd.Function`, inference tensors included.

    PyTorch does not save a tensor made in inference mode. It has no version counter that could tell of a change, and is
    stored on `ctx`.
    """
    ctx.inference_tensors = tuple(t if t is not None and t.is_inference() else None for t in tensors)
    ctx.save_for_backward(
        *(None if stored is t else t for t, stored in zip(tensors, ctx.inference_tensors, strict=True))
    )


def saved(ctx: Any) -> tuple[Any, ...]:
    """Return the tensors that `save` saved."""
    pairs = zip(ctx.saved_tensors, ctx.inference_tensors, strict=True)
    return tuple(t if stored is None else stored for t, stored in pairs)


def or_empty(grads: Sequence[torch.Tensor | None], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return gradients as an operator's results, which cannot be None: empty where there is none."""
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)
