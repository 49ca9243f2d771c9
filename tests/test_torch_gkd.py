"""TRL's GKDTrainer with our loss: in two processes as in one, and on texts that are generated."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.processes import STEPS, UNEQUAL, Cases, Result, V, llama, on_cpu_tensors, one_process, pair

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # TRL's default
]

pytest.importorskip("trl")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with processes.alone():
        yield


def _tokenizer() -> Any:
    """Return a tokenizer, of which the trainer needs the ids of special tokens only."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0} | {f"w{number}": number for number in range(1, V)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def _collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch like that of TRL's own collator; prompts are the first tokens, which are ignored."""
    batch = {name: torch.tensor([example[name] for example in examples]) for name in ("input_ids", "labels")}
    batch["labels"][:, :2] = -100
    batch["prompts"] = batch["input_ids"][:, :2]
    return batch | {
        "attention_mask": torch.ones_like(batch["input_ids"]),
        "prompt_attention_mask": torch.ones_like(batch["prompts"]),
    }


def _ours() -> Any:
    from lucid.examples.gkd import GKDTrainer

    return GKDTrainer


def _theirs() -> Any:
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer


def _trainer(result: Result, of: Any = _ours, *, rows: int = 4, accumulated: int = 1, **options: Any) -> Any:
    import datasets
    from trl.experimental.gkd import GKDConfig

    student, teacher = pair(llama)
    sgd = result.sgd(student)
    options = {"lmbda": 0.0, "max_new_tokens": 4, "bf16": False, **options}
    return result.recording(of())(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**processes.arguments(rows, accumulated, **options)),
        data_collator=_collate,
        train_dataset=datasets.Dataset.from_list(processes.sequences(UNEQUAL)),
        eval_dataset=datasets.Dataset.from_list(processes.sequences(processes.EVALUATED)),
        processing_class=_tokenizer(),
        optimizers=(sgd, processes.constant(sgd)),
    )


def _trained(*args: Any, **options: Any) -> Result:
    result = Result()
    return result.trained(_trainer(result, *args, **options))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_in_one_process_training_is_trls_own(beta: float) -> None:
    ours, theirs = (_trained(of, beta=beta) for of in (_ours, _theirs))
    theirs.evaluated = None  # a mean over batches
    ours.evaluated = None
    ours.assert_is(theirs)


@pytest.mark.parametrize("option", [{"lmbda": 1.0}, {"seq_kd": True}], ids=str)
def test_the_loss_of_generated_texts_is_the_mean_over_their_tokens(option: dict[str, Any]) -> None:
    result = Result()
    trainer = _trainer(result, beta=0.5, rows=2, accumulated=2, **option)
    compute_loss, generated = trainer.compute_loss, []

    def compare(model: Any, inputs: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute_loss(model, inputs, **kwargs)
        examples = [
            {"input_ids": ids, "labels": labels}
            for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True)
        ]
        mean = processes.plain_loss(trainer.model, trainer.teacher, examples, 0.5)
        assert loss.item() == pytest.approx(mean.item() / 2, rel=2e-5)
        generated.append(inputs["input_ids"].shape[1])
        return loss

    trainer.compute_loss = compare
    trainer.train()
    assert generated == [2 + 4] * 2 * STEPS


def _cases() -> Cases:
    return {
        "forward KL": functools.partial(_trained, rows=2, beta=0.0),
        "JS, accumulated": functools.partial(_trained, rows=1, accumulated=2, beta=0.25),
    }


@on_cpu_tensors
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    of_two = processes.two_processes(_cases, tmp_path)
    for name, beta in (("forward KL", 0.0), ("JS, accumulated", 0.25)):
        truth = one_process(llama, processes.sequences(UNEQUAL), beta)
        for results in of_two:
            results[name].assert_is(truth)
