"""The recipes for several processes give what one process gives from the whole batch, with PyTorch's own operators."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lucid.torch
from lucid.examples.distributed import FromHiddenStates, accumulate, accumulate_gradients, tokens_per_process
from tests import processes
from tests.device import DEVICE
from tests.processes import (
    EVALUATED,
    LENGTH,
    ONE_ONLY,
    STEPS,
    UNEQUAL,
    Cases,
    Embedder,
    Result,
    V,
    llama,
    on_cpu_tensors,
    one_process,
    pair,
)

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with processes.alone():
        yield


def _trainer(make: Any, result: Result, **options: Any) -> Any:
    """Whose every step has all examples."""
    from lucid.examples.trainer import DistillationTrainer

    return processes.trainer(DistillationTrainer, make, result, **options)


def _by_trainer(make: Any = llama, **options: Any) -> Result:
    result = Result()
    return result.trained(_trainer(make, result, **options))


def _by_hand(rows: int, tokens: tuple[int, ...] = UNEQUAL) -> Result:
    """With DistributedDataParallel, this process's half of the examples in batches of so many."""
    student, teacher = pair(Embedder)
    model = nn.parallel.DistributedDataParallel(_Logits(student))
    with _one_exchange_a_step(model):
        return _steps(
            model,
            rows,
            tokens,
            lambda batches: accumulate_gradients(model, _Logits(teacher), batches, lucid.torch.DistillationLoss()),
        )


def _by_hand_from_hidden_states(wrap: Any, rows: int, tokens: tuple[int, ...] = UNEQUAL) -> Result:
    """The same without logits, with DistributedDataParallel or FSDP2."""
    student, teacher = pair(Embedder)
    model = wrap(FromHiddenStates(student.body, student.linear, lucid.torch.LinearDistillationLoss()))

    def loss(ids: torch.Tensor, labels: torch.Tensor, normalizer: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = teacher.body(ids)
        weight, bias = (parameter.detach() for parameter in teacher.linear.parameters())
        of_teacher = {"teacher_hidden": hidden, "teacher_weight": weight, "teacher_bias": bias}
        return model(ids, **of_teacher, labels=labels, normalizer=normalizer)

    with _one_exchange_a_step(model):
        return _steps(model, rows, tokens, lambda batches: accumulate(model, batches, loss))


def _fully_shard(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


@contextlib.contextmanager
def _one_exchange_a_step(model: nn.Module) -> Iterator[None]:
    """Within, DistributedDataParallel or FSDP2 exchanges gradients once for each of the steps."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    exchanges = itertools.count()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.register_comm_hook(exchanges, lambda count, bucket: (next(count), allreduce_hook(None, bucket))[1])
        yield
    else:
        name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        scatter = getattr(dist, name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, name, lambda *args, **kwargs: (next(exchanges), scatter(*args, **kwargs))[1])
            yield
    assert next(exchanges) == STEPS


def _steps(model: nn.Module, rows: int, tokens: tuple[int, ...], step: Any) -> Result:
    """Train with this process's half of the examples in batches of so many."""
    result = Result()
    optimizer = result.sgd(model)
    half = processes.sequences(tokens)[dist.get_rank() :: 2]
    ids, labels = (torch.tensor([example[name] for example in half]) for name in ("input_ids", "labels"))
    next_tokens = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    batches = list(zip(ids.split(rows), next_tokens.split(rows), strict=True))
    for _ in range(STEPS):
        optimizer.zero_grad()
        result.losses.append(step(batches).item())
        optimizer.step()
    return result.end(model)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)["logits"]


def _cases() -> Cases:
    return {
        "by hand": functools.partial(_by_hand, rows=2),
        "by hand, accumulated": functools.partial(_by_hand, rows=1),
        "by hand, a process without a token": functools.partial(_by_hand, rows=1, tokens=ONE_ONLY),
        **{
            f"by hand, from hidden states, {name}{case}": functools.partial(
                _by_hand_from_hidden_states, wrap, rows, tokens
            )
            for name, wrap in {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": _fully_shard}.items()
            for case, rows, tokens in (
                ("", 2, UNEQUAL),
                (", accumulated", 1, UNEQUAL),
                (", a process without a token", 1, ONE_ONLY),
            )
        },
        "Llama": functools.partial(_by_trainer, rows=2),
        "Llama, accumulated": functools.partial(_by_trainer, rows=1, accumulated=2),
        "Llama, a process without a token": functools.partial(_by_trainer, rows=2, tokens=ONE_ONLY),
        "each its own tokens": functools.partial(
            _by_trainer, Embedder, tokens=(6, 1), rows=1, average_tokens_across_devices=False
        ),
        "no loss kwargs": functools.partial(_by_trainer, Embedder, rows=2),
        "no loss kwargs, accumulated": functools.partial(_by_trainer, Embedder, rows=1, accumulated=2),
    }


@pytest.mark.parametrize("make", [llama, Embedder])
@pytest.mark.parametrize(("rows", "accumulated"), [(4, 1), (1, 4), (3, 2)])
def test_one_process_trains_as_with_plain_pytorch(make: Any, rows: int, accumulated: int) -> None:
    _by_trainer(make, rows=rows, accumulated=accumulated).assert_is(one_process(make, processes.sequences(UNEQUAL)))


@on_cpu_tensors
def test_two_processes_train_as_one_with_the_whole_batch_or_as_asked_with_their_own_means(tmp_path: Path) -> None:
    of_two = processes.two_processes(_cases, tmp_path)
    for name in _cases().keys() - {"each its own tokens"}:
        tokens = ONE_ONLY if "without a token" in name else UNEQUAL
        truth = one_process(llama if "Llama" in name else Embedder, processes.sequences(tokens))
        for results in of_two:
            results[name].assert_is(truth)
    student, teacher = pair(Embedder)
    means = [processes.plain_loss(student, teacher, [example]).item() for example in processes.sequences((6, 1))]
    for results in of_two:
        assert results["each its own tokens"].losses[0] == pytest.approx(sum(means) / 2, rel=2e-5)


def test_replicas_of_data_parallel_share_a_step() -> None:
    result = Result()
    trainer = _trainer(Embedder, result, rows=2)
    trainer.args._n_gpu = 2  # as with two GPUs and one process; on the CPU torch's DataParallel has one replica
    trainer._train_batch_size = trainer.args.train_batch_size
    result.trained(trainer).assert_is(one_process(Embedder, processes.sequences(UNEQUAL)))
    assert isinstance(trainer.model_wrapped, nn.DataParallel)


@pytest.mark.parametrize("make", [llama, Embedder])
def test_a_step_without_a_token_changes_nothing(make: Any) -> None:
    result = _by_trainer(make, tokens=(0, 0))
    assert result.losses == result.norms == [0.0] * STEPS
    student, _ = pair(make)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(result.parameters, student.parameters(), strict=True))


def test_the_criterion_says_what_is_compared_and_which_labels_do_not_count() -> None:
    criterion = lucid.torch.DistillationLoss("reverse_kl", temperature=2.0, hard_label_weight=0.25, ignore_index=-1)
    trainer = _trainer(Embedder, Result(), criterion=criterion)
    batch = {name: ids.to(DEVICE) for name, ids in trainer.data_collator(trainer.train_dataset).items()}
    batch["labels"][batch["labels"] == -100] = -1
    kept = {name: ids.clone() for name, ids in batch.items()}
    with torch.no_grad():
        s, t = (model(batch["input_ids"])["logits"][:, :-1] for model in (trainer.model, trainer.teacher))
    expected = criterion(s, t, labels=batch["labels"][:, 1:])
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=trainer.tokens([batch])) == expected
    assert trainer.compute_loss(trainer.model.eval(), batch) == expected
    assert list(batch) == list(kept)
    assert all(torch.equal(batch[name], kept[name]) for name in kept)


def test_metrics_get_logits_and_labels_and_predictions_need_none() -> None:
    seen = []

    def look(predicted: Any) -> dict[str, int]:
        seen.append(predicted)
        return {"seen": 1}

    trainer = _trainer(llama, Result(), rows=2, compute_metrics=look)
    metrics = trainer.evaluate()
    (predicted,) = seen
    assert metrics["eval_seen"] == 1
    assert predicted.predictions.shape == (len(EVALUATED), LENGTH, V)
    assert predicted.label_ids.tolist() == [example["labels"] for example in processes.sequences(EVALUATED)]
    unlabelled = trainer.predict([{"input_ids": example["input_ids"]} for example in processes.sequences(EVALUATED)])
    assert unlabelled.predictions.shape == (len(EVALUATED), LENGTH, V)
    assert "test_loss" not in unlabelled.metrics


def test_the_teacher_evaluates_without_gradients_in_the_precision_of_training() -> None:
    seen = []

    def look(teacher: nn.Module, _: Any, outputs: Any) -> None:
        seen.append((teacher.training, outputs["logits"].requires_grad, outputs["logits"].dtype))

    trainer = _trainer(Embedder, Result(), bf16=True)
    trainer.teacher.register_forward_hook(look)
    before = [parameter.clone() for parameter in trainer.teacher.parameters()]
    trainer.train()
    trainer.evaluate()
    assert set(seen) == {(False, False, torch.bfloat16)}
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    assert all(map(torch.equal, before, trainer.teacher.parameters()))


def test_a_teacher_with_a_device_map_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    _, teacher = pair(Embedder)
    monkeypatch.setattr(teacher, "to", lambda device: moved.append(device.type))
    _trainer(Embedder, Result(), teacher=teacher)
    assert moved == [DEVICE.type]
    teacher.hf_device_map = {"": DEVICE}
    _trainer(Embedder, Result(), teacher=teacher)
    assert moved == [DEVICE.type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": nn.KLDivLoss()}, TypeError, "criterion must be a lucid.torch.DistillationLoss, got KLDivLoss"),
        (
            {"criterion": lucid.torch.DistillationLoss(reduction="sum")},
            ValueError,
            "criterion must have reduction 'mean', got 'sum'",
        ),
        ({"compute_loss_func": max}, ValueError, "compute_loss_func must be None, .* got a function"),
        ({"label_smoothing_factor": 0.1}, ValueError, "label_smoothing_factor must be 0, .* got 0.1"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _trainer(llama, Result(), **options)


@pytest.mark.parametrize("kind", ["cp", "sp"])
def test_sequences_that_are_split_over_processes_are_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(transformers.Trainer, f"get_{kind}_size", lambda self: 2)
    with pytest.raises(ValueError, match="context and sequence parallelism must be off"):
        _trainer(Embedder, Result())


def test_what_batches_and_models_lack_is_named() -> None:
    trainer = _trainer(Embedder, Result())
    trainer.train_dataset = [{"input_ids": example["input_ids"]} for example in trainer.train_dataset]
    with pytest.raises(ValueError, match="a batch must have labels, got 'input_ids'"):
        trainer.train()
    for model, name in ((trainer.teacher, "teacher"), (trainer.model, "model")):
        trainer = _trainer(Embedder, Result(), **({"teacher": model} if name == "teacher" else {}))
        broken = trainer.teacher if name == "teacher" else trainer.model
        broken.register_forward_hook(lambda _, __, outputs: (outputs["logits"],))
        with pytest.raises(TypeError, match=f"{name} must return a mapping with 'logits', got a tuple"):
            trainer.train()


def test_tokens_are_those_whose_labels_count() -> None:
    labels = [torch.tensor([[5, -100], [7, 8]]), torch.tensor([-100])]
    assert tokens_per_process(labels) == 3
    assert tokens_per_process(labels, ignore_index=7) == 4
