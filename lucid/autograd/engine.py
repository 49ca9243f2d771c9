"""Reverse-mode differentiation of recorded graphs, without recursion.

A node runs when the gradients of all its outputs are complete, latest recorded first, so that the order of
additions is fixed and gradients are deterministic. Gradients are stored in leaves only after the whole pass succeeded.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lucid._arguments import type_name
from lucid._tensor_methods import lazy_import
from lucid.autograd.function import FREED, Edge, Node
from lucid.autograd.grad_mode import set_grad_enabled
from lucid.tensor import Tensor, check_like

Target = Node | Tensor
Key = tuple[int, int]
Root = tuple[Target, int, Tensor]


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> None:
    """Accumulate gradients of `tensors`, weighted by `grad_tensors`, into the leaves they were made from.

    Parameters
    ----------
    tensors
        A tensor or a sequence of tensors.
    grad_tensors
        One gradient per tensor, of its shape; may be left out for tensors of one element.
    retain_graph
        Keep what backward needs, for another backward pass through the same graph.
    create_graph
        Record the computation of the gradients, so that they can be differentiated; keeps the graph, too.

    Raises
    ------
    RuntimeError
        If a tensor does not require grad, a gradient is missing or does not fit, or the graph has been freed. Then no
        ``.grad`` is changed.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0, 2.0], requires_grad=True)
    >>> lucid.autograd.backward([x.sum(), x * 3], [None, lucid.ones(2)])
    >>> x.grad.tolist()
    [4.0, 4.0]
    """
    roots = _roots("tensors", tensors, "grad_tensors", grad_tensors)
    GraphTask(roots, retain_graph or create_graph, create_graph).backward()


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs`, weighted by `grad_outputs`, to `inputs`; no `.grad` is touched.

    Parameters
    ----------
    outputs, inputs
        A tensor or a sequence of tensors.
    grad_outputs
        One gradient per output, of its shape; may be left out for tensors of one element.
    retain_graph
        Keep the graph for another backward pass; default: `create_graph`.
    create_graph
        Record the computation of the gradients, so that they can be differentiated.
    allow_unused
        Return None for an input that the outputs do not depend on.

    Returns
    -------
    tuple
        A tensor per input.

    Raises
    ------
    RuntimeError
        As `backward`; and if an input does not require grad, or cannot be reached unless `allow_unused`.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor(3.0, requires_grad=True)
    >>> (dx,) = lucid.autograd.grad(x * x * x, x, create_graph=True)
    >>> lucid.autograd.grad(dx, x)[0].item()
    18.0
    """
    roots = _roots("outputs", outputs, "grad_outputs", grad_outputs)
    wanted = _tensors("inputs", inputs)
    for number, tensor in enumerate(wanted):
        if not tensor.requires_grad:
            raise RuntimeError(f"input {number} of autograd.grad does not require grad")
    run = GraphTask(roots, create_graph if retain_graph is None else retain_graph, create_graph)
    return run.grad([Edge.to(tensor) for tensor in wanted], allow_unused)


def _listed(name: str, given: Any) -> tuple[Any, ...]:
    if isinstance(given, Tensor):
        return (given,)
    if not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a lucid.Tensor or a sequence of them, got {type_name(given)}")
    return tuple(given)


def _tensors(name: str, given: Any) -> tuple[Tensor, ...]:
    tensors = _listed(name, given)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be lucid.Tensors, got {type_name(tensor)}")
    return tensors


def _roots(name: str, given: Any, grads_name: str, grads: Any) -> list[Root]:
    tensors = _tensors(name, given)
    grads = (None,) * len(tensors) if grads is None else _listed(grads_name, grads)
    if len(grads) != len(tensors):
        raise RuntimeError(f"{grads_name} must have an entry for each of {name}, {len(tensors)}, got {len(grads)}")
    return [_root(tensor, grad) for tensor, grad in zip(tensors, grads, strict=True)]


def _root(tensor: Tensor, grad: Tensor | None) -> Root:
    if not tensor.requires_grad:
        raise RuntimeError("a tensor that does not require grad and has no grad_fn has no gradient")
    if grad is None:
        if tensor.numel() != 1:
            raise RuntimeError(
                f"a gradient can be left out only for a tensor of one element, got shape {tensor.shape}; "
                "pass one of the same shape"
            )
        grad = lazy_import("factories").ones_like(tensor)
    elif not isinstance(grad, Tensor):
        raise TypeError(f"gradient must be a lucid.Tensor, got {type_name(grad)}")
    else:
        check_like("gradient must have the tensor's", grad, tensor)
    return tensor._node or tensor, tensor._output_nr, grad


class GraphTask:
    """One backward pass from some roots."""

    def __init__(self, roots: list[Root], retain_graph: bool, create_graph: bool) -> None:
        self.roots = roots
        self.retain_graph = retain_graph
        self.create_graph = create_graph
        self.grads: dict[int, dict[int, Tensor]] = {}
        self.ready: list[tuple[int, int, Target]] = []
        self.pushes = itertools.count()
        self.results: list[tuple[Tensor, Tensor]] = []
        self.captured: dict[Key, Tensor | None] = {}
        # For autograd.grad: targets that must receive a gradient, and nodes that must run. None: all.
        self.capture_targets: set[int] | None = None
        self.needed: set[int] | None = None
        # Storages already owned by a .grad or by the caller: no two tensors may share one as their .grad.
        self.owned: set[int] = set()
        self._count_dependencies()

    def _count_dependencies(self) -> None:
        """Collect all nodes and count the edges into each target."""
        self.dependencies: Counter[int] = Counter()
        self.reached = {(id(target), number) for target, number, _ in self.roots}
        self.nodes: list[Node] = []
        seen: set[int] = set()
        stack = [target for target, _, _ in self.roots]
        while stack:
            target = stack.pop()
            if not isinstance(target, Node) or id(target) in seen:
                continue
            seen.add(id(target))
            self.nodes.append(target)
            for edge in target.edges:
                if edge is not None:
                    self.dependencies[id(edge.target)] += 1
                    self.reached.add((id(edge.target), edge.number))
                    stack.append(edge.target)

    def backward(self) -> None:
        """Run all nodes, then store gradients in leaves and in tensors that retain theirs."""
        _check_not_freed(self.nodes)
        self.owned.update(_memory(grad) for _, _, grad in self.roots)
        with set_grad_enabled(self.create_graph):
            self._run()
            for tensor, grad in self.results:
                self._store(tensor, grad)

    def grad(self, inputs: list[Edge], allow_unused: bool) -> tuple[Tensor | None, ...]:
        """Run the nodes between roots and inputs; return the gradients of the inputs."""
        keys = [(id(edge.target), edge.number) for edge in inputs]
        _check_used([key in self.reached for key in keys], allow_unused)
        self.captured = dict.fromkeys(keys)
        self.capture_targets, self.needed = {id(edge.target) for edge in inputs}, set()
        needed = []
        for node in sorted(self.nodes, key=lambda node: node.sequence):  # a node's arguments come before it
            if any(edge is not None and id(edge.target) in self.capture_targets for edge in node.edges):
                self.capture_targets.add(id(node))
                self.needed.add(id(node))
                needed.append(node)
        _check_not_freed(needed)
        with set_grad_enabled(self.create_graph):
            self._run()
        results = tuple(self.captured[key] for key in keys)
        _check_used([result is not None for result in results], allow_unused)
        return results

    def _run(self) -> None:
        for target, number, grad in self.roots:
            self._add(target, number, grad)
        for target in {id(target): target for target, _, _ in self.roots}.values():
            if not self.dependencies[id(target)]:
                self._push(target)
        while self.ready:
            target = heapq.heappop(self.ready)[2]
            grads = self.grads.pop(id(target), {})
            if isinstance(target, Node):
                self._run_node(target, grads)
            elif grads and target.requires_grad:  # it may have been frozen since the forward pass
                self.results.append((target, self._complete(target, 0, target._hooks, grads[0])))

    def _push(self, target: Target) -> None:
        sequence = target.sequence if isinstance(target, Node) else sys.maxsize
        heapq.heappush(self.ready, (-sequence, next(self.pushes), target))

    def _add(self, target: Target, number: int, grad: Tensor) -> None:
        if self.capture_targets is not None and id(target) not in self.capture_targets:
            return
        grads = self.grads.setdefault(id(target), {})
        grads[number] = lazy_import("ops").add(grads[number], grad) if number in grads else grad

    def _run_node(self, node: Node, grads: dict[int, Tensor]) -> None:
        for number in sorted(grads):
            grads[number] = self._complete(node, number, node.hooks.get(number), grads[number])
            tensor = node.retained[number]() if number in node.retained else None
            if tensor is not None:
                self.results.append((tensor, grads[number]))
        results: tuple[Tensor | None, ...] = (None,) * len(node.edges)
        if grads and (self.needed is None or id(node) in self.needed):
            node.context.keeps_graph = self.retain_graph
            results = node.apply(tuple(grads.get(number) for number in range(node.outputs)))
            if not self.retain_graph:
                node.free()
        for edge, grad in zip(node.edges, results, strict=True):
            if edge is None:
                continue
            if grad is not None:
                self._add(edge.target, edge.number, grad)
            self.dependencies[id(edge.target)] -= 1
            if not self.dependencies[id(edge.target)]:
                self._push(edge.target)

    def _complete(self, target: Target, number: int, hooks: Any, grad: Tensor) -> Tensor:
        """Pass a complete gradient through hooks, each of which may replace it, and capture it if it was asked for."""
        for hook in tuple(hooks.values()) if hooks else ():
            self.owned.add(_memory(grad))
            result = hook(grad)
            if result is None:
                continue
            if not isinstance(result, Tensor):
                raise RuntimeError(f"a tensor hook must return None or a Tensor, got {type_name(result)}")
            check_like("what a tensor hook returns must have the gradient's", result, grad)
            self.owned.add(_memory(result))
            grad = result
        if (id(target), number) in self.captured:
            self.captured[id(target), number] = grad
        return grad

    def _store(self, tensor: Tensor, grad: Tensor) -> None:
        if tensor.grad is not None:
            if self.create_graph:
                tensor.grad = lazy_import("ops").add(tensor.grad, grad)
            else:
                lazy_import("ops.gradients").accumulate(tensor.grad, grad)
            return
        memory = _memory(grad)
        buffer = grad._buffer
        overlaps = any(stride == 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True) if size > 1)
        if memory in self.owned or overlaps:
            grad = grad.clone()
        self.owned.add(memory)
        tensor.grad = grad if self.create_graph else grad.detach()


def _memory(tensor: Tensor) -> int:
    """Return the address of the allocation of a tensor."""
    return tensor._buffer.untyped_storage().data_ptr()


def _check_not_freed(nodes: Sequence[Node]) -> None:
    if any(node.freed for node in nodes):
        raise RuntimeError(FREED)


def _check_used(used: Sequence[bool], allow_unused: bool) -> None:
    if not allow_unused and not all(used):
        raise RuntimeError(
            f"input {used.index(False)} of autograd.grad is not part of the graph of the outputs; "
            "pass allow_unused=True to get None for it"
        )
