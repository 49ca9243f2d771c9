"""Distillation with PyTorch's DistributedDataParallel: processes whose batches have different numbers of tokens.

DistributedDataParallel averages the gradients of W processes. Where each process divides the sum of its tokens' losses
by its own count, a token counts for more in a process that has few. Where each divides by the count of all processes,
loss and gradient are 1/W of those of the mean over all tokens. The divisor that gives this mean is the count of all
processes over W, the average number of tokens per process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lucid.torch import DistillationLoss


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
    normalizer = tokens_per_process([labels for _, labels in batches], criterion.ignored_label)
    losses = []
    for number, (inputs, labels) in enumerate(batches, start=1):
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        with _exchange(model, number == len(batches)):
            loss = criterion(model(inputs), teacher_logits, labels=labels, normalizer=normalizer)
            loss.backward()
        losses.append(loss.detach())
    return mean_over_processes(torch.stack(losses).sum())


def _exchange(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Where backward runs: gradients go to other processes in the last batch only."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()
