"""README's recipes run as they stand, each with no more than what the text says is the reader's."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from tests import processes
from tests.device import DEVICE
from tests.processes import LENGTH, V, llama, pair

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCK = r"^\*\*((?:transformers|TRL|PyTorch alone)[^*]*)\.\*\*(?:.+\n)+\n((?: {4}.*\n|\n)+)"
RECIPES = dict(re.findall(BLOCK, README, re.MULTILINE))


def test_there_are_recipes_for_each() -> None:
    assert {recipe.partition(",")[0] for recipe in RECIPES} == {"transformers", "TRL", "PyTorch alone"}
    assert "transformers, from hidden states" in RECIPES


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # where trainers write
    with processes.alone():
        yield


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0} | {f"w{number}": number for number in range(1, V)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return made


def _yours(recipe: str) -> dict[str, Any]:
    student, teacher = pair(llama)
    if recipe == "TRL":
        import datasets

        turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
        dataset = datasets.Dataset.from_list([{"messages": turns}])
        return {"student": student, "teacher": teacher, "dataset": dataset, "tokenizer": _tokenizer()}
    if recipe.startswith("transformers"):
        from transformers import TrainingArguments

        arguments = TrainingArguments(**processes.arguments(4, 1))
        return {"student": student, "teacher": teacher, "dataset": processes.sequences(), "arguments": arguments}
    student, teacher = (torch.nn.Embedding(V, V, device=DEVICE) for _ in range(2))
    batches = [tuple(torch.randint(V, (LENGTH,), device=DEVICE) for _ in range(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    return {"student": student, "teacher": teacher, "batches": batches, "optimizer": optimizer}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_the_readers_student(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if recipe == "TRL":
        gkd: Any = pytest.importorskip("trl.experimental.gkd")
        few = {"bf16": False, "max_new_tokens": 4, **processes.arguments(1, 1)}  # bf16 by default, which needs a GPU
        monkeypatch.setattr(gkd, "GKDConfig", functools.partial(gkd.GKDConfig, **few))
    yours = _yours(recipe)
    before = [parameter.detach().clone() for parameter in yours["student"].parameters()]
    exec(dedent(RECIPES[recipe]), dict(yours))
    after = list(yours["student"].parameters())
    assert not all(map(torch.equal, before, after))
    assert all(parameter.isfinite().all() for parameter in after)
