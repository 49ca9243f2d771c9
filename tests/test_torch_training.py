"""Training with lucid.torch, by the means PyTorch has for it, gives what torch's own loss gives."""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lucid.torch
from tests.device import DEVICE
from tests.processes import leave
from triton_kernels.runtime import backend

pytestmark = pytest.mark.usefixtures("implementation")

STEPS = 6
Loss = Callable[[Tensor, Tensor], Tensor]


def _torch_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    return 4 * F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="batchmean")


def _lucid_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    return lucid.torch.distillation_loss(student, teacher, temperature=2.0, temperature_squared=True)


def _kl_div(library: Any, student: Tensor, teacher: Tensor) -> Tensor:
    criterion = library.KLDivLoss(reduction="batchmean", log_target=True)
    return criterion(student.log_softmax(-1), teacher.log_softmax(-1))


def _cross_entropy(library: Any, student: Tensor, teacher: Tensor) -> Tensor:
    return library.CrossEntropyLoss(label_smoothing=0.1)(student, teacher.argmax(-1))


def _soft_cross_entropy(library: Any, student: Tensor, teacher: Tensor) -> Tensor:
    return library.CrossEntropyLoss(label_smoothing=0.1)(student, teacher.softmax(-1))


def _both(loss: Callable[[Any, Tensor, Tensor], Tensor]) -> tuple[Loss, Loss]:
    """Return a loss of lucid.torch and the same of torch.nn."""
    return functools.partial(loss, lucid.torch), functools.partial(loss, nn)


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "distillation": (_lucid_distillation, _torch_distillation),
    "kl_div": _both(_kl_div),
    "cross-entropy": _both(_cross_entropy),
    "cross-entropy, probabilities": _both(_soft_cross_entropy),
}


def _student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 11)).to(DEVICE)


def _train(
    loss: Loss,
    *,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    recompute: bool = False,
    model: nn.Module | None = None,
    rank: int = 0,
) -> list[float]:
    """The losses of a few steps from the same seed."""
    student = _student() if model is None else model
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    torch.manual_seed(1 + rank)
    losses = []
    for _ in range(STEPS):
        x, teacher = torch.randn(8, 5, device=DEVICE), 3 * torch.randn(8, 11, device=DEVICE)
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            if recompute:
                value = checkpoint(lambda x, t: loss(student(x), t), x, teacher, use_reentrant=False)
            else:
                value = loss(student(x), teacher)
        assert value.dtype == torch.float32
        if scaler is None:
            value.backward()
            optimizer.step()
        else:
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_torchs(name: str) -> None:
    ours, theirs = (_train(loss) for loss in PAIRS[name])
    assert ours == pytest.approx(theirs, rel=2e-6)


def _in_float32(loss: Loss) -> Loss:
    """As torch's losses are calculated where autocast does what it should; on the CPU it leaves log_softmax out."""

    def converted(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, enabled=False):
            return loss(student.float(), teacher.float())

    return converted


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "kl_div"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_arithmetic_is_float32(name: str, dtype: torch.dtype) -> None:
    """Gradients are rounded once, to the logits' dtype, in both: now and then differently, by one unit of it."""
    ours, theirs = PAIRS[name]
    losses = [_train(loss, autocast=dtype) for loss in (ours, _in_float32(theirs))]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_kl_div_under_autocast_is_what_it_is_of_the_same_log_probabilities_in_float32() -> None:
    x, y = (torch.randn(8, 11, device=DEVICE).log_softmax(-1).bfloat16() for _ in range(2))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = lucid.torch.kl_div(x.requires_grad_(), y, reduction="batchmean", log_target=True)
    expected = F.kl_div(x.double(), y.double(), reduction="batchmean", log_target=True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad, (-y.double().exp() / 8).bfloat16())


@pytest.mark.parametrize("name", PAIRS)
def test_with_a_gradient_scaler(name: str) -> None:
    ours, theirs = (_train(loss, scaler=torch.amp.GradScaler(DEVICE.type, init_scale=2.0**12)) for loss in PAIRS[name])
    assert ours == pytest.approx(theirs, rel=2e-6)


def test_a_scaler_finds_gradients_that_overflow() -> None:
    """A gradient that float16 cannot hold is inf, and its step is left out, as with torch's loss."""
    scales = []
    for loss in PAIRS["distillation"]:
        logits = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
        optimizer, scaler = torch.optim.SGD([logits], lr=1.0), torch.amp.GradScaler(DEVICE.type, init_scale=2.0**24)
        teacher = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], device=DEVICE)
        scaler.scale(loss(logits.half(), teacher)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert logits.tolist() == [[0.0] * 3] * 2
        scales.append(scaler.get_scale())
    assert scales == [2.0**23] * 2


@pytest.mark.parametrize("name", PAIRS)
def test_with_activation_checkpointing(name: str) -> None:
    loss, _ = PAIRS[name]
    # Its gradients come from the statistics of rows, in a second launch: the rounding is another.
    assert _train(loss, recompute=True) == pytest.approx(_train(loss), rel=2e-6)


def _parallel(rank: int, port: int) -> None:
    """One of two processes: each with data of its own, gradients averaged."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for (ours, theirs), kind in itertools.product(PAIRS.values(), ("DDP", "FSDP2")):
        results = [_train(loss, model=_wrapped(kind), rank=rank) for loss in (ours, theirs)]
        assert results[0] == pytest.approx(results[1], rel=2e-6)
        # Alone, the same data would have led elsewhere: gradients did come from the other process.
        assert results[0][0] == pytest.approx(_train(ours, rank=rank)[0], rel=1e-6)
        assert results[0][-1] != pytest.approx(_train(ours, rank=rank)[-1], rel=1e-3)
    _distributed_tensors_are_refused()
    leave()


def _wrapped(kind: str) -> Any:
    if kind == "DDP":
        return nn.parallel.DistributedDataParallel(_student())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    student, mesh = _student(), init_device_mesh("cpu", (2,))
    for layer in student:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(student, mesh=mesh)


def _distributed_tensors_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    logits = distribute_tensor(torch.randn(4, 6), init_device_mesh("cpu", (2,)), [Shard(0)])
    for call, name in (
        (lambda: lucid.torch.kl_div(logits, logits, reduction="sum"), "input"),
        (lambda: lucid.torch.distillation_loss(torch.randn(4, 6), logits), "teacher_logits"),
        (lambda: lucid.torch.cross_entropy(logits, torch.zeros(4, dtype=torch.int64)), "input"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a local tensor, got a DTensor: pass {name}.to_local"):
            call()
    assert lucid.torch.distillation_loss(logits.to_local(), logits.to_local()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="two processes on CPU tensors, which compiled kernels do not take")
def test_two_processes_with_ddp_and_fsdp2_train_as_with_torchs_loss(implementation: str) -> None:
    if implementation == "kernels":
        pytest.skip("the processes run torch's operators")
    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_parallel, (port,), nprocs=2)


def test_threads_do_not_get_in_each_others_way(implementation: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    @lucid.torch.kernels_on_cpu(implementation == "kernels" and backend.INTERPRETED)  # a switch of each thread
    def step(number: int) -> Any:
        generator = torch.Generator().manual_seed(number)
        s, t = (torch.randn(4, 50, generator=generator).to(DEVICE) for _ in range(2))
        loss = lucid.torch.distillation_loss(s.requires_grad_(), t)
        return loss.item(), torch.autograd.grad(loss, s)[0]

    expected = [step(number) for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for (loss, grad), (got, got_grad) in zip(expected, pool.map(step, range(6)), strict=True):
            assert got == loss
            assert torch.equal(got_grad, grad)
