"""Allocations and launches of lucid.torch: nothing of the inputs' size beyond what it returns."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lucid.torch
import triton_kernels as tk
from lucid.torch import eager
from tests.allocations import Allocations
from tests.device import DEVICE
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, launch

pytestmark = pytest.mark.usefixtures("implementation")

N, V = 8, 40_000
#: Bytes of what grows with the inputs.
LARGE = N * V // 8

Loss = Callable[[Tensor, Tensor], Tensor]


def _distillation(divergence: str) -> Loss:
    return lambda s, t: lucid.torch.distillation_loss(s, t, divergence=divergence)


def _weighted(s: Tensor, t: Tensor) -> Tensor:
    weight = torch.arange(N, device=DEVICE).float()
    return lucid.torch.distillation_loss(s, t, weight=weight, reduction="batchmean", vocab_size=V - 5)


LOSSES: dict[str, Loss] = {
    "kl_div": lambda s, t: lucid.torch.kl_div(s, t, reduction="batchmean", log_target=True),
    "kl_div, module": lambda s, t: lucid.torch.KLDivLoss(reduction="sum")(s, t),
    **{divergence: _distillation(divergence) for divergence in ("forward_kl", "reverse_kl", "js", "total_variation")},
    "distillation, weighted": _weighted,
    "cross-entropy": lambda s, t: lucid.torch.cross_entropy(s, torch.arange(N, device=DEVICE), label_smoothing=0.1),
    "cross-entropy, probabilities": lambda s, t: lucid.torch.cross_entropy(s, t, label_smoothing=0.1),
}


#: Losses whose gradient to the student is computed with them.
WITH_THE_LOSS = {
    "forward_kl": _distillation("forward_kl"),
    "reverse_kl": _distillation("reverse_kl"),
    "js": _distillation("js"),
    "total_variation": _distillation("total_variation"),
    "cross-entropy": lambda s, t: lucid.torch.cross_entropy(s, torch.arange(len(s), device=DEVICE)),
    "cross-entropy, probabilities": lucid.torch.cross_entropy,
}


@pytest.fixture(autouse=True)
def _counting_is_no_reason_to_compute_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocations are counted by a dispatch mode, which others use to see operators."""
    monkeypatch.setattr(eager, "dispatch_modes", lambda: 0)


def _inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Student and teacher; the teacher's are not negative, so that they are targets, too."""
    s, t = torch.randn(N, V, device=DEVICE, dtype=dtype), torch.rand(N, V, device=DEVICE, dtype=dtype)
    return s.requires_grad_(), t


@pytest.mark.kernels_only
def test_the_count_sees_what_torch_allocates() -> None:
    s, t = _inputs(torch.float32)
    with Allocations(s, t) as allocated:
        torch.nn.functional.kl_div(s, t, reduction="sum", log_target=True)
    assert allocated.above(LARGE).count(4 * N * V) >= 2


@pytest.mark.kernels_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_only_the_gradient_has_the_inputs_size_and_becomes_the_leafs_without_a_copy(
    name: str, dtype: torch.dtype
) -> None:
    one = [dtype.itemsize * N * V]
    for in_forward in (True, False):
        s, t = _inputs(dtype)
        with lucid.gradient_in_forward(in_forward):
            with Allocations(s, t) as forward:
                loss = LOSSES[name](s, t)
            with Allocations(s, t, loss) as backward:
                loss.backward()
        with_loss = in_forward and not name.startswith("kl_div")
        assert [forward.above(LARGE), backward.above(LARGE)] == ([one, []] if with_loss else [[], one])


def test_a_gradient_in_place_allocates_nothing() -> None:
    for _ in range(2):  # the first makes a workspace on the CPU, which the thread keeps
        s, t = _inputs(torch.bfloat16)
        s = s * 1  # no leaf
        with Allocations(s, t) as made:
            loss = lucid.torch.distillation_loss(s, t, inplace_gradient=True)
            torch.autograd.grad(loss, s)
    assert made.above(LARGE) == []


@pytest.mark.parametrize("name", WITH_THE_LOSS)
def test_the_graph_keeps_the_gradient_and_no_logits(name: str) -> None:
    """After the call the caller's references are the only ones."""
    s, t = _inputs(torch.float32)
    student, teacher = s * 1, t * 1
    loss = LOSSES[name](student, teacher)
    gone = [weakref.ref(student), weakref.ref(teacher)]
    del student, teacher
    assert [ref() for ref in gone] == [None, None]
    loss.backward()
    assert s.grad is not None


def test_a_teacher_made_in_inference_mode_is_a_teacher_like_others() -> None:
    s, t = _inputs(torch.float32)
    expected = torch.autograd.grad(lucid.torch.distillation_loss(s, t), s)[0]
    with torch.inference_mode():
        teacher = t * 1
    for in_forward in (True, False):
        with lucid.gradient_in_forward(in_forward):
            got = torch.autograd.grad(lucid.torch.distillation_loss(s, teacher), s)[0]
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.kernels_only
@pytest.mark.interpreter_only
@pytest.mark.parametrize("columns", [32_000, 1271])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WITH_THE_LOSS)
def test_each_logit_is_read_once_and_the_gradient_written_once(name: str, dtype: torch.dtype, columns: int) -> None:
    rows = 8 if columns == 32_000 else 41
    s, t = (torch.randn(rows, columns).to(dtype) for _ in range(2))
    size = s.nbytes
    read = size * (1 if name == "cross-entropy" else 2)
    small = 8 * (40 * rows + (columns if name == "cross-entropy" else 0))
    with torch.no_grad(), trace.traffic() as evaluated:
        WITH_THE_LOSS[name](s, t)
    with trace.traffic() as forward:
        loss = WITH_THE_LOSS[name](s.requires_grad_(), t)
    with trace.traffic() as backward:
        loss.backward()
    assert read <= evaluated.read <= read + small
    assert read <= forward.read <= read + small
    assert evaluated.written <= small
    assert size <= forward.written <= size + small
    assert backward.read + backward.written <= small
    with trace.traffic() as scaled:
        (WITH_THE_LOSS[name](s, t) * 3).backward()
    assert scaled.read <= read + size + 2 * small
    assert scaled.written <= 2 * size + 2 * small


@pytest.mark.kernels_only
def test_strided_inputs_are_not_copied() -> None:
    wide = torch.rand(N, 2 * V, device=DEVICE)
    s, t = wide[:, ::2].requires_grad_(), wide[:, 1::2]
    for loss in LOSSES.values():
        with Allocations(wide) as forward:
            result = loss(s, t)
        with Allocations(wide, result) as backward:
            torch.autograd.grad(result, s)
        # Partial results take more where columns are strided, since tiles are shorter; a copy would be 4·N·V bytes.
        made = sorted([*forward.bytes, *backward.bytes])
        assert made[-1] == 4 * N * V  # the gradient
        assert made[-2] < N * V


@pytest.mark.kernels_only
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_partial_results_of_strided_inputs_take_less_than_a_copy_with_the_tiles_of_a_gpu(kind: str) -> None:
    wide = torch.empty(N, 2 * V)
    with launch.dry_run(lambda _: None), Allocations(wide) as forward:
        tk.divergence_forward(wide[:, ::2], wide[:, 1::2], divergence=kind)
    assert max(forward.bytes) < N * V


@pytest.mark.kernels_only
@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [("kl_div", 2, 1), ("forward_kl", 2, 1), ("js", 2, 1), ("distillation, weighted", 2, 1), ("cross-entropy", 4, 1)],
)
def test_launches_of_a_call(name: str, forward: int, backward: int) -> None:
    """With a GPU's tiles: the loss, and its mean over tokens; before it those of labels, if they say how many count."""
    from triton_kernels.runtime import tile_configs

    s, t = _inputs(torch.float32)
    with tile_configs.use_tile_configs(interpreted=False):
        with trace.launches() as made:
            loss = LOSSES[name](s, t)
        assert len(made) == forward
        with trace.launches() as made:
            torch.autograd.grad(loss, s)
        assert len(made) == backward


ON_A_GPU = pytest.mark.skipif(backend.INTERPRETED, reason="asks the GPU's allocator and streams; needs a GPU")


@pytest.mark.kernels_only
@ON_A_GPU
@pytest.mark.parametrize("name", LOSSES)
def test_peak_memory_on_a_gpu(name: str) -> None:
    s, t = (torch.randn(64, 131_072, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    s.requires_grad_()
    loss = LOSSES[name] if "weight" not in name and "cross" not in name else LOSSES["js"]
    torch.autograd.grad(loss(s, t), s)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(loss(s, t), s)
    gradient = s.numel() * s.element_size()
    assert torch.cuda.max_memory_allocated() - before <= gradient + 0.01 * 3 * gradient


@pytest.mark.kernels_only
@ON_A_GPU
@pytest.mark.parametrize("name", LOSSES)
# torch 2.11 says so of leaves that earlier steps used on another stream; `autograd.grad` accumulates nothing.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning")
def test_a_cuda_graph_replays_forward_and_backward(name: str) -> None:
    s, t = _inputs(torch.float32)

    def step() -> tuple[Tensor, Tensor]:
        loss = LOSSES[name](s, t)
        return loss, torch.autograd.grad(loss, s)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    for _ in range(2):
        with torch.no_grad():
            s.copy_(torch.randn_like(s))
            t.copy_(torch.rand_like(t))
        graph.replay()
        torch.cuda.synchronize()
        expected = step()
        assert loss.isfinite()
        assert torch.equal(loss, expected[0])
        assert torch.equal(grad, expected[1])


@pytest.mark.kernels_only
@ON_A_GPU
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_another_stream_does_not_wait_and_gives_the_same(name: str) -> None:
    s, t = _inputs(torch.float32)
    expected = LOSSES[name](s, t).detach()  # a graph that stays alive would keep s to the first stream
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            s.mul_(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = LOSSES[name](s, t)
            (grad,) = torch.autograd.grad(loss, s)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not stream.query()  # nothing above has waited
    stream.synchronize()
    assert torch.equal(loss, expected)
    assert grad.isfinite().all()


@pytest.mark.kernels_only
@ON_A_GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_is_used_and_not_the_current_one() -> None:
    s, t = (x.detach().to("cuda:1").requires_grad_() for x in _inputs(torch.float32))
    with torch.cuda.device(0):
        loss = lucid.torch.distillation_loss(s, t)
        loss.backward()
    assert loss.device == s.grad.device == torch.device("cuda:1")
