"""A transformer of lucid.nn: the same losses as in PyTorch, every number from a kernel, and the example's training."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
from lucid.examples.distill_transformer import __main__ as command
from lucid.examples.distill_transformer import model as model_module
from lucid.examples.distill_transformer.model import Size, Transformer
from lucid.examples.distill_transformer.text import Texts
from lucid.examples.distill_transformer.training import Plan, Training, loss_of_labels, loss_of_teacher
from lucid.optim.lr_scheduler import OneCycleLR
from tests.test_no_torch_arithmetic import NoArithmetic
from triton_kernels.runtime import launch

SIZE = Size(vocabulary=31, context=12, width=16, heads=2, layers=2)
SMALL = replace(SIZE, width=8, layers=1)
PLAN = Plan(steps=6, batch=3, length=12, learning_rate=1e-2, evaluations=3, held_out=2)


def texts() -> Texts:
    draw = np.random.default_rng(0)
    # Every other token repeats the one before it, so that there is something to learn.
    train, held_out = (np.repeat(draw.integers(0, SIZE.vocabulary, count), 2) for count in (200, 40))
    return Texts(None, SIZE.vocabulary, train, held_out)


@pytest.fixture
def torch_model() -> ModuleType:
    """The example's model, with torch in place of lucid in its imports."""
    assert model_module.__file__ is not None
    source = Path(model_module.__file__).read_text()
    assert source.count("\nimport lucid\nfrom lucid import nn\n") == 1
    source = source.replace("\nimport lucid\nfrom lucid import nn\n", "\nimport torch as lucid\nfrom torch import nn\n")
    module = ModuleType("model_in_torch")
    sys.modules[module.__name__] = module  # where dataclasses look their types up
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("distilled", [False, True])
def test_twenty_steps_have_the_losses_of_the_same_script_in_torch(torch_model: ModuleType, distilled: bool) -> None:
    def run(module: Any, front: Any, schedulers: Any, convert: Any) -> list[float]:
        functional = front.nn.functional
        teacher, student = module.Transformer(SIZE), module.Transformer(SMALL)
        for target, source in ((teacher, weights[0]), (student, weights[1])):
            target.load_state_dict({name: convert(value) for name, value in source.items()})
        optimizer = front.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.1)
        scheduler = schedulers.OneCycleLR(optimizer, 1e-2, total_steps=21)
        criterion = front.nn.KLDivLoss(reduction="batchmean")
        losses = []
        for step in range(20):
            inputs, targets = (convert(array) for array in texts().batch(0, step, 3, 12))
            logits = student(inputs).view(-1, SIZE.vocabulary)
            if distilled:
                with front.no_grad():
                    teacher_logits = teacher(inputs).view(-1, SIZE.vocabulary)
                log_q, p = functional.log_softmax(logits / 2, dim=-1), functional.softmax(teacher_logits / 2, dim=-1)
                loss = criterion(log_q, p) * 4
            else:
                loss = functional.cross_entropy(logits, targets.view(-1))
            optimizer.zero_grad()
            loss.backward()
            front.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        return losses

    weights = [{k: v.numpy().copy() for k, v in Transformer(size).state_dict().items()} for size in (SIZE, SMALL)]
    ours = run(model_module, lucid, lucid.optim.lr_scheduler, lucid.tensor)
    theirs = run(torch_model, torch, torch.optim.lr_scheduler, torch.tensor)
    # Adam divides by the root of a moment, so roundings of early gradients are not small beside small gradients.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_in_mixed_precision_computes_nothing_in_torch(dtype: str) -> None:
    """Model, losses, clipping, scaler, optimizer and scheduler."""
    teacher, student = Transformer(SIZE), Transformer(replace(SMALL, dropout=0.1))
    optimizer = lucid.optim.AdamW(student.parameters(), lr=1e-3)
    scheduler = OneCycleLR(optimizer, 1e-3, total_steps=10)
    scaler = lucid.amp.GradScaler(init_scale=256.0)
    inputs, targets = (lucid.tensor(array) for array in texts().batch(0, 0, 2, 12))
    before = student.tokens.weight.numpy().copy()
    with NoArithmetic() as guard:
        for _ in range(2):
            with lucid.amp.autocast(dtype=dtype):
                loss = loss_of_teacher(student, teacher)(inputs, targets) + loss_of_labels(student)(inputs, targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    assert "empty" in guard.seen
    assert np.isfinite(loss.item())
    assert not np.array_equal(student.tokens.weight.numpy(), before)


def test_the_two_lines_of_the_loss_are_computed_from_the_logits() -> None:
    teacher, student = Transformer(SIZE), Transformer(SMALL)
    inputs, targets = (lucid.tensor(array) for array in texts().batch(0, 0, 2, 12))
    launched: list[str] = []
    with launch.launch_hook(lambda made: launched.append(made.kernel.__name__)):
        loss_of_teacher(student, teacher)(inputs, targets).backward()
    assert launched.count("_divergence_kernel") == 1, launched
    assert not [name for name in launched if "softmax" in name or "kl_div" in name]


def test_the_model_is_short() -> None:
    assert model_module.__file__ is not None
    assert len(Path(model_module.__file__).read_text().splitlines()) <= 150


def training(path: Path, teacher: Transformer | None = None) -> Training:
    lucid.manual_seed(1)
    model = Transformer(replace(SMALL, dropout=0.2))
    loss = loss_of_labels(model) if teacher is None else loss_of_teacher(model, teacher)
    return Training(model, loss, texts(), PLAN, seed=3, path=path, teacher=teacher)


def test_a_resumed_training_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole.safetensors")
    losses = list(whole.run())
    stopped = training(tmp_path / "stopped.safetensors")
    for _ in zip(range(5), stopped.run(), strict=False):
        pass
    resumed = training(tmp_path / "stopped.safetensors")
    resumed.resume()
    assert resumed.step == 3  # that of the last checkpoint
    lucid.randn(5)  # the generator's state is that of the checkpoint, whatever came before
    resumed.resume()
    list(resumed.run())
    assert resumed.history == whole.history
    assert resumed.history.losses == losses
    states = [lucid.load(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped")]
    for part in ("model", "optimizer", "scheduler", "random"):
        assert repr(states[0][part]) == repr(states[1][part])
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    made = training(tmp_path / "x.safetensors")
    made.save()
    other = training(tmp_path / "x.safetensors")
    other.seed = 4
    with pytest.raises(ValueError, match=r"x\.safetensors is of a training with seed 3, not 4"):
        other.resume()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("rich", "matplotlib", "tokenizers"))), reason="needs the examples extra"
)
def test_the_command_trains_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--teacher-steps", "2", "--student-steps", "1", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    for name in ("teacher", "student of labels", "student of teacher"):
        assert name in first
        assert (tmp_path / f"{name.replace(' ', '_')}.safetensors").exists()
    assert (tmp_path / "losses.png").exists()
    assert command.main([*arguments, "--resume"]) == 0
    again = capsys.readouterr().out
    rows = [[line for line in out.splitlines() if line.startswith("│")] for out in (first, again)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    with pytest.raises(SystemExit):
        command.main(["--teacher-steps", "3", "--output", str(tmp_path), "--resume"])
    assert "argument --resume: " in capsys.readouterr().err
