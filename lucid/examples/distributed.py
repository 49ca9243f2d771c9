"""Distillation with PyTorch's DistributedDataParallel or FSDP2: processes whose batches have unequal numbers of tokens.

Both average the gradients of W processes. Where each process divides the sum of its tokens' losses by its own count, a
token counts for more in a process that has few. Where each divides by the count of all processes, loss and gradient are
1/W of those of the mean over all tokens. The divisor that gives this mean is the count of all processes over W, the
average number of tokens per process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lucid.torch import DistillationLoss, LinearDistillationLoss


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of what each process has, the same in all of them; a process alone gets its own value."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def tokens_per_process(labels: Iterable[Tensor], ignore_index: int = -100) -> Tensor:
    """The number of tokens that count in a training step, averaged over processes: the `normalizer` of its losses.

    Every process must call this at every step, also one without a token.

    Parameters
    ----------
    labels : iterable of torch.Tensor
        Labels of the batches whose gradients this process adds up, of any shapes, on one device.
    ignore_index : int
        The label of tokens that do not count.

    Returns
    -------
    torch.Tensor
        0-d, on that device; nothing waits for it.

    Examples
    --------
    >>> import torch
    >>> from lucid.examples.distributed import tokens_per_process
    >>> tokens_per_process([torch.tensor([[-100, 3, 1]]), torch.tensor([[2, -100, -100]])])
    tensor(3)
    """
    return mean_over_processes(torch.stack([(each != ignore_index).sum() for each in labels]).sum())


def accumulate_gradients(
    model: nn.Module, teacher: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], criterion: DistillationLoss
) -> Tensor:
    """Add the gradients of one training step, which are those of the mean over all tokens of all batches and processes.

    Parameters
    ----------
    model : torch.nn.Module
        Maps inputs to logits (..., V). Under several processes a DistributedDataParallel, which exchanges gradients
        once, in the last batch.
    teacher : torch.nn.Module
        The same, in evaluation mode and on the same device.
    batches : sequence of (inputs, labels)
        This process's, equally many in each process. `labels` (...) holds the label of each row of logits, and the
        criterion's `ignored_label` where a row does not count.
    criterion : lucid.torch.DistillationLoss
        With ``reduction="mean"``.

    Returns
    -------
    torch.Tensor
        The loss of the step, 0-d and without a gradient; the same in each process.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> from lucid.examples.distributed import accumulate_gradients
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> student, teacher = (torch.nn.Embedding(3, 3, device=device) for _ in range(2))
    >>> batches = [(torch.tensor([0, 1], device=device), torch.tensor([1, -100], device=device))]
    >>> loss = accumulate_gradients(student, teacher, batches, lucid.torch.DistillationLoss())
    >>> student.weight.grad[1].tolist()
    [0.0, 0.0, 0.0]
    """

    def loss(inputs: Tensor, labels: Tensor, normalizer: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        return criterion(model(inputs), teacher_logits, labels=labels, normalizer=normalizer)

    return accumulate(model, batches, loss, criterion.ignored_label)


def accumulate(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    ignore_index: int = -100,
) -> Tensor:
    """As `accumulate_gradients`, for a loss of any kind.

    Parameters
    ----------
    model : torch.nn.Module
        Under several processes a DistributedDataParallel, or the argument of `fully_shard`.
    batches : sequence of (inputs, labels)
        This process's, equally many in each process.
    loss : callable
        Maps inputs, labels and the normalizer to the sum over the batch's tokens divided by the normalizer, by one call
        of the model.
    ignore_index : int
        The label of tokens that do not count.

    Returns
    -------
    torch.Tensor
        The loss of the step, 0-d and without a gradient; the same in each process.
    """
    normalizer = tokens_per_process([labels for _, labels in batches], ignore_index)
    losses = []
    for number, (inputs, labels) in enumerate(batches, start=1):
        with _exchange(model, number == len(batches)):
            value = loss(inputs, labels, normalizer)
            value.backward()
        losses.append(value.detach())
    return mean_over_processes(torch.stack(losses).sum())


class FromHiddenStates(nn.Module):
    """A student whose output is its loss, computed from hidden states: no tensor has an element per token and column.

    The weight of the last layer is used within `forward`, as that layer would use it: DistributedDataParallel exchanges
    its gradient, and `fully_shard` of this module gathers it.

    Parameters
    ----------
    body : torch.nn.Module
        Maps inputs to hidden states (..., D), or to an output with these as its ``last_hidden_state``, as the base
        models of transformers do.
    head : torch.nn.Linear
        Maps hidden states to logits.
    criterion : lucid.torch.LinearDistillationLoss

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> from lucid.examples.distributed import FromHiddenStates
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> body, head = torch.nn.Embedding(3, 2, device=device), torch.nn.Linear(2, 5, device=device)
    >>> student = FromHiddenStates(body, head, lucid.torch.LinearDistillationLoss())
    >>> student(torch.tensor([0, 2], device=device), teacher_logits=torch.zeros(2, 5, device=device)).backward()
    >>> head.weight.grad.shape
    torch.Size([5, 2])
    """

    def __init__(self, body: nn.Module, head: nn.Linear, criterion: LinearDistillationLoss) -> None:
        super().__init__()
        self.body, self.head, self.criterion = body, head, criterion

    def forward(self, inputs: Tensor, **others: Tensor | None) -> Tensor:
        """Return the loss; further arguments are the criterion's: the teacher's, ``labels`` and ``normalizer``."""
        hidden = self.body(inputs)
        hidden = getattr(hidden, "last_hidden_state", hidden)
        loss: Tensor = self.criterion(hidden, self.head.weight, student_bias=self.head.bias, **others)
        return loss


@contextlib.contextmanager
def _exchange(model: nn.Module, last: bool) -> Iterator[None]:
    """Where forward and backward run: gradients go to other processes in the last batch only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield
