"""Distillation of tiny models: in one process with plain PyTorch, and in two processes with the code under test."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lucid.examples.distributed import mean_over_processes
from tests.device import DEVICE

on_cpu_tensors = pytest.mark.skipif(
    DEVICE.type != "cpu", reason="two processes on CPU tensors, which compiled kernels do not take"
)

V, WIDTH, LENGTH, STEPS, RATE = 50, 8, 9, 3, 0.1
TIME_LIMIT = 240.0
"""Timeout of the processes in seconds; they take a tenth."""

#: Numbers of labelled tokens per sequence; unequal for two processes however they split four sequences.
UNEQUAL = (6, 1, 4, 0)
ONE_ONLY = (3, 0, 0, 0)
EVALUATED = (6, 1, 4, 0, 3)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run with one thread, without TRL's telemetry, and restore the environment."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    os.environ["CI"] = "true"  # turns off TRL's telemetry
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


class Output(dict[str, Tensor]):
    """Output of a model that is not from transformers."""


class Context(nn.Module):
    """Hidden states from the last two tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        return torch.cat((before, x), dim=-1).tanh()


class Embedder(nn.Module):
    """Next-token logits from the last two tokens; `forward` takes no labels or other arguments of a loss."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body, self.linear = Context(width), nn.Linear(2 * width, V)

    def forward(self, input_ids: Tensor) -> Output:
        return Output(logits=self.linear(self.body(input_ids)))


def llama(width: int = WIDTH) -> Any:
    """Return a one-layer Llama of transformers with random weights."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4 * LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def pair(make: Callable[..., Any]) -> tuple[Any, Any]:
    """Return student and teacher, with weights scaled up: initial ones give nearly uniform distributions."""
    torch.manual_seed(0)
    models = make(), make(2 * WIDTH)
    for model in models:
        for parameter in model.parameters():
            parameter.data.mul_(4)
        model.to(DEVICE)
    return models


def sequences(tokens: tuple[int, ...] = UNEQUAL) -> list[dict[str, list[int]]]:
    """Return examples with `tokens` labels each, the last ones; those with the most also have the first label."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for count in tokens:
        ids = torch.randint(1, V, (LENGTH,), generator=generator)
        labels = ids.where(torch.arange(LENGTH) >= LENGTH - count, -100)
        if count == max(tokens):
            labels[0] = ids[0]  # no logits predict it
        examples.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return examples


@dataclass
class Result:
    """Losses, gradient norms and final parameters of a training run, and the loss of an evaluation."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    evaluated: float | None = None

    def sgd(self, model: nn.Module) -> torch.optim.SGD:
        """Return an optimizer that records the norm of each gradient."""
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        optimizer.register_step_pre_hook(lambda *_: self.norms.append(gradient_norm(model)))
        return optimizer

    def recording(self, trainer: Any) -> Any:
        """Return a subclass of a Trainer that records the loss of each step."""
        losses = self.losses

        class Recording(trainer):
            def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
                loss = super().training_step(*args, **kwargs)
                if len(losses) == self.state.global_step:
                    losses.append(0.0)
                losses[-1] += mean_over_processes(loss).item()
                return loss

        return Recording

    def trained(self, trainer: Any) -> Result:
        """Train and evaluate, and return the results."""
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert logged == pytest.approx(self.losses, abs=1e-4)
        self.evaluated = trainer.evaluate()["eval_loss"]
        return self.end(trainer.model)

    def end(self, model: nn.Module) -> Result:
        """Record the final parameters; return self."""
        self.parameters = [whole(parameter.detach()).cpu().clone() for parameter in model.parameters()]
        return self

    def assert_is(self, truth: Result) -> None:
        """Compare up to float32 rounding, as gradients are summed in another order."""
        assert len(self.losses) == len(self.norms) == STEPS
        torch.testing.assert_close(self.losses, truth.losses, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(self.norms, truth.norms, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(self.parameters, truth.parameters, rtol=2e-5, atol=2e-6)
        if self.evaluated is not None:
            torch.testing.assert_close(self.evaluated, truth.evaluated, rtol=2e-5, atol=1e-6)


def arguments(rows: int, accumulated: int = 1, **options: Any) -> dict[str, Any]:
    """Return arguments of transformers' TrainingArguments for plain SGD steps."""
    return {
        "output_dir": tempfile.gettempdir(),
        "max_steps": STEPS,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": accumulated,
        "max_grad_norm": 0.0,
        "use_cpu": DEVICE.type == "cpu",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        **options,
    }


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a constant learning-rate schedule."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


#: Arguments of a Trainer; the others are among its TrainingArguments.
OTHERS = {"teacher", "criterion", "compute_loss_func", "compute_metrics"}


def trainer(
    of: Any,
    make: Any,
    result: Result,
    *,
    tokens: tuple[int, ...] = UNEQUAL,
    rows: int = 4,
    accumulated: int = 1,
    **options: Any,
) -> Any:
    """Return a Trainer of this class whose every step has all examples."""
    from transformers import TrainingArguments

    student, teacher = pair(make)
    sgd = result.sgd(student)
    others = {name: options.pop(name) for name in OTHERS & options.keys()}
    return result.recording(of)(
        model=student,
        args=TrainingArguments(**arguments(rows, accumulated, **options)),
        train_dataset=sequences(tokens),
        eval_dataset=sequences(EVALUATED),
        optimizers=(sgd, constant(sgd)),
        **{"teacher": teacher, **others},
    )


def gradient_norm(model: nn.Module) -> float:
    """Return the norm of the gradients of all parameters."""
    gradients = (parameter.grad for parameter in model.parameters())
    return torch.nn.utils.get_total_norm([whole(gradient) for gradient in gradients if gradient is not None]).item()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which FSDP gave each process a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def plain_loss(student: Any, teacher: Any, examples: list[dict[str, list[int]]], beta: float = 0.0) -> Tensor:
    """Return the mean divergence over all tokens by its definition, for GKD's beta."""
    ids, labels = (torch.tensor([example[name] for example in examples], device=DEVICE) for name in examples[0])
    with torch.no_grad():
        log_p = teacher(input_ids=ids)["logits"][:, :-1].log_softmax(-1)
    log_q = student(input_ids=ids)["logits"][:, :-1].log_softmax(-1)
    if beta == 0:
        losses = (log_p.exp() * (log_p - log_q)).sum(-1)
    else:
        log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
        losses = (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)).sum(-1)
    return losses[labels[:, 1:] != -100].mean()


def one_process(make: Callable[..., Any], examples: list[dict[str, list[int]]], beta: float = 0.0) -> Result:
    """Train with all examples in one batch, with plain PyTorch."""
    student, teacher = pair(make)
    result = Result()
    optimizer = result.sgd(student)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = plain_loss(student, teacher, examples, beta)
        loss.backward()
        optimizer.step()
        result.losses.append(loss.item())
    assert result.losses[-1] < 0.98 * result.losses[0], "the loss has not decreased"
    result.evaluated = plain_loss(student, teacher, sequences(EVALUATED), beta).item()
    return result.end(student)


Cases = dict[str, Callable[[], Result]]


def _run(rank: int, port: int, folder: Path, cases: Callable[[], Cases]) -> None:
    """Run all cases in one of two processes."""
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "CI": "true",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: case() for name, case in cases().items()}
    torch.save(results, folder / f"{rank}.pt")
    leave()


def leave() -> None:
    """Leave the process group before the process ends.

    PyTorch's gloo threads outlive the group. A thread that waits for the GIL to release a tensor of the last
    collective aborts the process if the interpreter ends first; the pause lets it finish.
    """
    import torch.distributed as dist

    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()


def two_processes(cases: Callable[[], Cases], folder: Path) -> list[dict[str, Result]]:
    """Run all cases in two processes on CPU tensors; return the results of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = mp.start_processes(_run, (port, folder, cases), nprocs=2, join=False, start_method="spawn")
    try:
        deadline = time.monotonic() + TIME_LIMIT
        while not started.join(timeout=1.0):
            assert time.monotonic() < deadline, f"two processes did not end within {TIME_LIMIT} s"
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
