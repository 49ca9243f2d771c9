"""Functions with a forward and a backward, and the nodes of the graph that they record."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from lucid._arguments import type_name
from lucid._lazy import version_of
from lucid.autograd.anomaly import check_backward, check_forward, detect_anomaly, is_anomaly_enabled, where_called
from lucid.autograd.grad_mode import flag as grad_flag
from lucid.tensor import Tensor

FREED = (
    "trying to backward through the graph a second time, after it has been freed: pass retain_graph=True to the first "
    "backward() or autograd.grad()"
)

_sequence = itertools.count()


class Context:
    """Context that a `Function`'s forward passes to its backward.

    Attributes
    ----------
    needs_input_grad : tuple of bool
        For each argument of forward, whether its gradient is needed.
    keeps_graph : bool
        In backward, whether the graph is kept for another backward pass.
    """

    needs_input_grad: tuple[bool, ...]
    keeps_graph = True

    def __init__(self) -> None:
        self._to_save: tuple[Tensor | None, ...] = ()
        self._saved: tuple[_Saved | None, ...] | None = ()
        self._node: weakref.ref[Node] | None = None

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save inputs or outputs of forward; modifying them in place before backward is then an error.

        Raises
        ------
        TypeError
            If one is neither a Tensor nor None.
        """
        for tensor in tensors:
            if tensor is not None and not isinstance(tensor, Tensor):
                raise TypeError(
                    f"save_for_backward takes Tensors and Nones, got {type_name(tensor)}; "
                    "other values can be attributes of ctx"
                )
        self._to_save = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """Saved tensors, connected to the graph as they were.

        Raises
        ------
        RuntimeError
            If the graph has been freed, or one of them was modified in place.
        """
        if self._saved is None:
            raise RuntimeError(FREED)
        node = self._node() if self._node is not None else None
        return tuple(None if saved is None else saved.unpack(node) for saved in self._saved)


class _Saved:
    """A tensor saved for backward; of an output only the memory, to avoid a reference cycle with its node."""

    __slots__ = ("memory", "output_nr", "tensor", "version")

    def __init__(self, tensor: Tensor, output_nr: int | None) -> None:
        self.memory = tensor._memory
        self.tensor = tensor if output_nr is None else None
        self.output_nr = output_nr
        self.version = version_of(self.memory)

    def unpack(self, node: Node | None) -> Tensor:
        version = version_of(self.memory)
        restored = Tensor._wrap(self.memory)
        if version != self.version:
            raise RuntimeError(
                f"a tensor of shape {restored.shape} that backward needs was modified in place after it was used "
                f"(version {version}, expected {self.version})"
            )
        if self.tensor is not None:
            return self.tensor
        restored._node, restored._output_nr = node, self.output_nr or 0
        return restored


class Edge(NamedTuple):
    """Receiver of an argument's gradient, and the shape, dtype and device that it must have."""

    target: Node | Tensor  # the node whose output the argument was, or a leaf
    number: int  # of that output; 0 for a leaf
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def to(cls, tensor: Tensor) -> Edge:
        """Return the edge that leads to a tensor."""
        like = tensor._like
        return cls(tensor._node or tensor, tensor._output_nr, tuple(like.shape), like.dtype, like.device)


class Node:
    """One recorded call: the function, its saved values, and the receivers of its arguments' gradients.

    Attributes
    ----------
    edges : tuple
        An `Edge` per argument of forward, None for those that need no gradient.
    sequence : int
        Larger than that of any node recorded before.
    """

    __slots__ = (
        *("__weakref__", "called", "context", "edges", "freed", "function", "hooks", "outputs", "retained", "sequence"),
    )

    def __init__(self, function: type[Function], context: Context, args: tuple[Any, ...], outputs: int) -> None:
        self.function = function
        self.context = context
        self.edges = tuple(
            [Edge.to(arg) if needed else None for arg, needed in zip(args, context.needs_input_grad, strict=True)]
        )
        self.outputs = outputs
        self.called = where_called() if is_anomaly_enabled() else ""
        self.sequence = next(_sequence)
        self.freed = False
        self.hooks: dict[int, OrderedDict[int, Callable[[Tensor], Tensor | None]]] = {}
        self.retained: dict[int, weakref.ref[Tensor]] = {}

    @property
    def name(self) -> str:
        """Name of the function, with the suffix Backward."""
        return f"{self.function.__name__}Backward"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def apply(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments, one per edge, each in its argument's dtype."""
        checked = is_anomaly_enabled()
        with (
            detect_anomaly(False) if checked else nullcontext()
        ):  # the operations that make up a gradient are not named
            result = self.function.backward(self.context, *grads)
        results = result if isinstance(result, tuple) else (result,)
        if checked:
            saved = (Tensor._wrap(entry.memory) for entry in self.context._saved or () if entry is not None)
            check_backward(self.name, (*grads, *saved), results, self.called)
        if len(results) > len(self.edges) and all(grad is None for grad in results[len(self.edges) :]):
            results = results[: len(self.edges)]  # the others are of arguments that were left out
        if len(results) != len(self.edges):
            raise RuntimeError(
                f"{self.name} must return {len(self.edges)} gradients, one per argument of forward, got {len(results)}"
            )
        return tuple(
            None if edge is None or grad is None else self._fit(grad, edge)
            for edge, grad in zip(self.edges, results, strict=True)
        )

    def _fit(self, grad: Tensor, edge: Edge) -> Tensor:
        if not isinstance(grad, Tensor):
            raise TypeError(f"{self.name} must return lucid.Tensors and Nones, got {type_name(grad)}")
        if grad.shape != edge.shape:
            raise RuntimeError(
                f"{self.name} returned a gradient of shape {grad.shape} for an argument of shape {edge.shape}"
            )
        if grad._like.device != edge.device:
            raise RuntimeError(f"{self.name} returned a gradient on {grad.device} for an argument on {edge.device}")
        return grad if grad._like.dtype == edge.dtype else grad.to(edge.dtype)

    def retain(self, tensor: Tensor) -> None:
        """Keep the gradient of this node's output `tensor` in its ``.grad``."""
        self.retained[tensor._output_nr] = weakref.ref(tensor)

    def pass_retained(self, tensor: Tensor, written: Tensor) -> None:
        """Keep the gradient of `written` instead, in the ``.grad`` of this node's output `tensor`, if it is kept."""
        kept = self.retained.get(tensor._output_nr)
        if kept is not None and kept() is tensor:
            written._node.retained[written._output_nr] = self.retained.pop(tensor._output_nr)

    def free(self) -> None:
        """Drop what was saved."""
        self.freed = True
        self.context._saved = None


def shares_memory_with_leaf(tensor: Tensor) -> bool:
    """Return whether a tensor is a leaf, or was recorded as a view of one."""
    storage = tensor._buffer.untyped_storage().data_ptr()
    target: Node | Tensor | None = tensor if tensor._node is None else tensor._node
    while isinstance(target, Node):  # a view has one argument
        targets = [edge.target for edge in target.edges if edge is not None]
        target = targets[0] if len(targets) == 1 else None
    return target is not None and target._buffer.untyped_storage().data_ptr() == storage


class Function:
    """A differentiable operation: subclass it, define forward and backward, call ``apply``.

    ``forward(ctx, *args)`` gets its arguments as they are, with recording off, and returns a Tensor or a tuple of
    Tensors and Nones. ``backward(ctx, *grads)`` gets one gradient per output (None where there is none) and returns one
    per argument of forward (None where there is none), of the argument's shape; it is converted to the argument's
    dtype. Backward is itself recorded under ``create_graph=True``, so it must be made of tensor operations.

    Examples
    --------
    >>> import lucid
    >>> class Double(lucid.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x + x
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         return grad * 2
    >>> x = lucid.tensor(3.0, requires_grad=True)
    >>> Double.apply(x).backward()
    >>> x.grad.item()
    2.0
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        raise NotImplementedError("a Function must define forward")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("a Function must define backward")

    #: Whether the result may be a view of the first argument.
    makes_view = False

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward, and record the call if grad mode is on and an argument requires grad."""
        context = Context()
        record = grad_flag.enabled
        needs = context.needs_input_grad = tuple(
            [record and isinstance(arg, Tensor) and arg.requires_grad for arg in args]
        )
        grad_flag.enabled = False
        try:
            result = cls.forward(context, *args)
        finally:
            grad_flag.enabled = record
        made = result if isinstance(result, tuple) else (result,)
        if is_anomaly_enabled():
            check_forward(cls.__name__, args, made)
        for out in made:
            if out is not None and not isinstance(out, Tensor):
                raise TypeError(f"{cls.__name__}.forward must return lucid.Tensors and Nones, got {type_name(out)}")
        if True not in needs:
            context._to_save = ()
            return _as_view(result, args[0]) if cls.makes_view else result
        node = Node(cls, context, args, len(made))
        context._node = weakref.ref(node)
        context._saved = tuple(
            [None if tensor is None else _Saved(tensor, _position(tensor, args, made)) for tensor in context._to_save]
        )
        context._to_save = ()
        outputs = tuple([None if out is None else _output(out, node, number) for number, out in enumerate(made)])
        if isinstance(result, tuple):
            return outputs
        return _as_view(outputs[0], args[0]) if cls.makes_view else outputs[0]


def _position(tensor: Tensor, args: tuple[Any, ...], made: tuple[Any, ...]) -> int | None:
    """Which output a saved tensor is; None for an input, also for one that was handed through."""
    for arg in args:
        if tensor is arg:
            return None
    for number, out in enumerate(made):
        if tensor is out:
            return number
    return None


def _as_view(out: Any, source: Tensor) -> Any:
    """Note what a result is a view of, if it shares memory with the source."""
    if out._buffer.untyped_storage().data_ptr() == source._buffer.untyped_storage().data_ptr():
        base = source if source._base is None else source._base
        out._base, out._base_writes = base, base._writes
    return out


def _output(made: Tensor, node: Node, number: int) -> Tensor:
    """Return a result of forward as a fresh tensor of the graph, as forward may have returned one of its inputs."""
    out = Tensor._wrap(made._memory)
    if out._like.dtype.is_floating_point:
        out._node, out._output_nr = node, number
    return out
