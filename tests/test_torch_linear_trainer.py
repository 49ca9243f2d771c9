"""The Trainer that distils from hidden states trains as plain PyTorch from logits does, which it does not make."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lucid.torch
from tests import processes
from tests.device import DEVICE
from tests.processes import (
    EVALUATED,
    LENGTH,
    ONE_ONLY,
    STEPS,
    UNEQUAL,
    WIDTH,
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
    from lucid.examples.linear_trainer import LinearDistillationTrainer

    return processes.trainer(LinearDistillationTrainer, make, result, **options)


def _by_trainer(make: Any = llama, **options: Any) -> Result:
    result = Result()
    return result.trained(_trainer(make, result, **options))


def _model(kind: str, width: int, **options: Any) -> Any:
    """Return a one-layer model of transformers with random weights."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4 * LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=False,
        attn_implementation="eager",
        **options,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def gemma2(width: int = WIDTH) -> Any:
    """Logits with a softcap, and the weight of the embedding."""
    return _model("Gemma2", width, head_dim=4, final_logit_softcapping=2.0)


def cohere(width: int = WIDTH) -> Any:
    """Logits times a number."""
    return _model("Cohere", width, logit_scale=0.5)


def granite(width: int = WIDTH) -> Any:
    """Logits divided by a number."""
    return _model("Granite", width, logits_scaling=3.0)


def phi(width: int = WIDTH) -> Any:
    """Logits with a bias."""
    return _model("Phi", width)


def _fully_sharded(make: Any, by_layer: bool = True) -> Result:
    """One step's loss and gradients of a student that FSDP2 shards: as a whole, or its layers, and the rest."""
    trainer = _trainer(make, Result(), rows=2)
    mesh = init_device_mesh("cpu", (2,))
    for part in (*(trainer.model.model.layers if by_layer else ()), trainer.model):
        fully_shard(part, mesh=mesh)
    examples = processes.sequences()[dist.get_rank() :: 2]
    batch = {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}
    loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=trainer.tokens([batch]))
    loss.backward()
    gradients = [processes.whole(parameter.grad) for parameter in trainer.model.parameters()]
    return Result(losses=[processes.mean_over_processes(loss.detach()).item()], parameters=gradients)


def _cases() -> Cases:
    return {
        "Llama, sharded": functools.partial(_fully_sharded, llama),
        "Llama, sharded as a whole": functools.partial(_fully_sharded, llama, by_layer=False),
        "Gemma, sharded": functools.partial(_fully_sharded, gemma2),
        "Llama": functools.partial(_by_trainer, rows=2),
        "Llama, accumulated": functools.partial(_by_trainer, rows=1, accumulated=2),
        "Llama, a process without a token": functools.partial(_by_trainer, rows=2, tokens=ONE_ONLY),
        "Llama, unused parameters looked for": functools.partial(_by_trainer, rows=2, ddp_find_unused_parameters=True),
        "Gemma": functools.partial(_by_trainer, gemma2, rows=2),
    }


@pytest.mark.parametrize("make", [llama, gemma2, cohere, granite, phi])
@pytest.mark.parametrize(("rows", "accumulated"), [(4, 1), (3, 2)])
def test_one_process_trains_as_with_plain_pytorch_from_logits(make: Any, rows: int, accumulated: int) -> None:
    _by_trainer(make, rows=rows, accumulated=accumulated).assert_is(one_process(make, processes.sequences(UNEQUAL)))


@on_cpu_tensors
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    of_two = processes.two_processes(_cases, tmp_path)
    for name in _cases():
        tokens = ONE_ONLY if "without a token" in name else UNEQUAL
        make = llama if "Llama" in name else gemma2
        if "sharded" in name:
            student, teacher = pair(make)
            loss = processes.plain_loss(student, teacher, processes.sequences())
            loss.backward()
            for results in of_two:
                torch.testing.assert_close(results[name].losses, [loss.item()], rtol=2e-5, atol=1e-6)
                gradients = [parameter.grad for parameter in student.parameters()]
                torch.testing.assert_close(results[name].parameters, gradients, rtol=2e-5, atol=2e-6)
        else:
            truth = one_process(make, processes.sequences(tokens))
            for results in of_two:
                results[name].assert_is(truth)


def test_a_step_without_a_token_changes_nothing() -> None:
    result = _by_trainer(tokens=(0, 0))
    assert result.losses == result.norms == [0.0] * STEPS
    student, _ = pair(llama)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(result.parameters, student.parameters(), strict=True))


def _batch(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: ids.to(DEVICE) for name, ids in trainer.data_collator(trainer.train_dataset).items()}


def test_the_criterion_says_what_is_compared_and_which_labels_do_not_count() -> None:
    options: Any = {"temperature": 2.0, "hard_label_weight": 0.25, "ignore_index": -1}
    criterion = lucid.torch.LinearDistillationLoss("reverse_kl", **options)
    trainer = _trainer(llama, Result(), criterion=criterion)
    batch = _batch(trainer)
    batch["labels"][batch["labels"] == -100] = -1
    kept = {name: ids.clone() for name, ids in batch.items()}
    with torch.no_grad():
        s, t = (model(batch["input_ids"])["logits"][:, :-1] for model in (trainer.model, trainer.teacher))
    expected = lucid.torch.distillation_loss(s, t, divergence="reverse_kl", labels=batch["labels"][:, 1:], **options)
    in_training = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=trainer.tokens([batch]))
    torch.testing.assert_close(in_training, expected)
    torch.testing.assert_close(trainer.compute_loss(trainer.model.eval(), batch), expected)
    assert list(batch) == list(kept)
    assert all(torch.equal(batch[name], kept[name]) for name in kept)


def test_training_and_evaluation_make_logits_of_the_last_position_alone() -> None:
    trainer = _trainer(llama, Result(), rows=2)
    shapes = set()
    for model in (trainer.model, trainer.teacher):
        model.lm_head.register_forward_hook(lambda _, __, logits: shapes.add(tuple(logits.shape[1:])))
    trainer.train()
    trainer.evaluate()
    assert shapes == {(1, V)}


def test_metrics_and_predictions_get_all_logits_and_the_loss_is_the_same() -> None:
    seen = []

    def look(predicted: Any) -> dict[str, int]:
        seen.append(predicted)
        return {"seen": 1}

    trainer = _trainer(llama, Result(), rows=2, compute_metrics=look)
    with_metrics = trainer.evaluate()
    (predicted,) = seen
    assert predicted.predictions.shape == (len(EVALUATED), LENGTH, V)
    trainer.compute_metrics = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(with_metrics["eval_loss"], rel=1e-6)
    unlabelled = trainer.predict([{"input_ids": example["input_ids"]} for example in processes.sequences(EVALUATED)])
    assert unlabelled.predictions.shape == (len(EVALUATED), LENGTH, V)
    batch = _batch(trainer)
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(outputs["logits"], trainer.model(batch["input_ids"])["logits"])


def test_what_is_saved_is_the_student_and_no_hook_is_left_on_the_models(tmp_path: Path) -> None:
    trainer = _trainer(gemma2, Result())
    trainer.train()
    trainer.save_model(str(tmp_path))
    saved = transformers.Gemma2ForCausalLM.from_pretrained(tmp_path).state_dict()
    assert saved.keys() == trainer.model.state_dict().keys()
    assert all(torch.equal(saved[name], value.cpu()) for name, value in trainer.model.state_dict().items())
    modules = [module for model in (trainer.model, trainer.teacher) for module in model.modules()]
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules
    )


def test_the_loss_of_bfloat16_training_is_float32_and_near() -> None:
    losses = [_by_trainer(bf16=bf16).losses for bf16 in (False, True)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_a_compiled_student_trains_as_another() -> None:
    torch.compiler.reset()
    result = _by_trainer(torch_compile=True, torch_compile_backend="aot_eager", max_steps=STEPS)
    result.assert_is(one_process(llama, processes.sequences(UNEQUAL)))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"criterion": lucid.torch.DistillationLoss()},
            TypeError,
            "criterion must be a lucid.torch.LinearDistillationLoss, got DistillationLoss",
        ),
        (
            {"criterion": lucid.torch.LinearDistillationLoss(reduction="sum")},
            ValueError,
            "criterion must have reduction 'mean', got 'sum'",
        ),
        ({"teacher": nn.Linear(1, 1)}, TypeError, "teacher must have a linear layer as its output embeddings"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _trainer(llama, Result(), **options)


def test_a_student_without_output_embeddings_is_refused() -> None:
    with pytest.raises(TypeError, match="student must have a linear layer as its output embeddings, got a NoneType"):
        _trainer(Embedder, Result())


def test_several_gpus_in_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="each process must have one GPU, got 2: start one process per GPU"):
        _trainer(llama, Result())


@pytest.mark.parametrize("make", [gemma2, cohere, granite])
def test_logits_that_are_not_the_criterions_are_an_error_that_says_what_to_pass(make: Any) -> None:
    from lucid.examples.linear_trainer import logit_options

    trainer = _trainer(make, Result(), criterion=lucid.torch.LinearDistillationLoss())
    with pytest.raises(ValueError, match=r"criterion must have the teacher's .* got 1.0 and None.*teacher_\w+': ") as e:
        trainer.train()
    options = logit_options(trainer.model, trainer.teacher)
    assert str({name: value for name, value in options.items() if name.startswith("teacher")}) in str(e.value)
    _trainer(make, Result(), criterion=lucid.torch.LinearDistillationLoss(**options)).train()


def test_output_embeddings_that_run_twice_are_an_error() -> None:
    trainer = _trainer(llama, Result())
    forward = trainer.model.model.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        trainer.model.lm_head(outputs.last_hidden_state)
        return outputs

    trainer.model.model.forward = twice
    with pytest.raises(TypeError, match="student must call its output embeddings once, it called them 2 times"):
        trainer.train()
