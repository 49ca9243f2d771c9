"""Models of Hugging Face's transformers train with lucid.torch's loss as they do with the plain torch expression.

Each training runs from one seed with ours, by kernels and by torch's operators, with the plain expression in float32,
and with the plain expression in float64, applied to the same float32 logits. The last is the truth: it says how far the
rounding of a loss in float32 may lead a training.
"""

from __future__ import annotations

import contextlib
import math
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lucid.torch
from tests import processes
from tests.device import DEVICE
from tests.reference import ROUNDOFF
from triton_kernels.runtime import backend

transformers: Any = pytest.importorskip("transformers")

V, WIDTH, LENGTH, BATCH, STEPS = 97, 32, 12, 4, 30
TEMPERATURE = 2.0

Loss = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, no trace in the environment, and no threads, whose start takes longer than products this small."""

    def refuse(*_: Any) -> None:
        raise AssertionError("something wants to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with processes.alone():
        yield
    _forget_compiled()


def _forget_compiled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Inductor's own, which is imported here at the latest
        torch.compiler.reset()


def _llama(width: int = WIDTH, columns: int = V, layers: int = 2) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=columns,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).to(DEVICE)


def _gpt2(width: int = WIDTH, columns: int = V, layers: int = 2) -> Any:
    config = transformers.GPT2Config(
        vocab_size=columns,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config).to(DEVICE)


def _teacher(make: Callable[..., Any]) -> Any:
    """One that has something to say: random weights as initialised give nearly uniform distributions."""
    teacher = make(48).eval().requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.mul_(4)
    return teacher


def _tokens(rows: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences, and their labels: none in the prompt, whose length is any, nor in some gaps."""
    ids = torch.randint(0, V, (rows, LENGTH), generator=generator)
    prompt = torch.randint(1, LENGTH - 1, (rows, 1), generator=generator)
    gaps = torch.rand((rows, LENGTH), generator=generator) < 0.1
    return ids.to(DEVICE), ids.masked_fill((torch.arange(LENGTH) < prompt) | gaps, -100).to(DEVICE)


@dataclass(frozen=True)
class Case:
    """A training: its models, and options of the loss."""

    make: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    columns: int = V
    """Columns of the student's logits, of which the first V count."""
    autocast: bool = False

    @property
    def ours(self) -> Loss:
        """The module, called as a training script would."""
        vocab_size = None if self.columns == V else V
        loss = lucid.torch.DistillationLoss(temperature=TEMPERATURE, vocab_size=vocab_size, **self.options)
        return lambda s, t, labels, normalizer=None: loss(s, t, labels=labels, normalizer=normalizer)

    def plain(self, arithmetic: torch.dtype) -> Loss:
        """Return the loss as plain PyTorch computes it, in this arithmetic."""
        squared = TEMPERATURE**2 if self.options.get("temperature_squared") else 1.0
        hard = self.options.get("hard_label_weight", 0.0)

        def loss(s: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, normalizer: Any = None) -> torch.Tensor:
            s, t = s[..., :V].to(arithmetic), t[..., :V].to(arithmetic)
            log_q, p = F.log_softmax(s / TEMPERATURE, dim=-1), F.softmax(t / TEMPERATURE, dim=-1)
            losses = F.kl_div(log_q, p, reduction="none").sum(-1) * squared
            if hard:
                entropies = F.cross_entropy(s.flatten(0, 1), labels.flatten(), reduction="none").view_as(losses)
                losses = (1 - hard) * losses + hard * entropies
            mask = labels != -100
            return (losses * mask).sum() / (mask.sum() if normalizer is None else normalizer)

        return loss

    def runs(self, train: Callable[[Loss], list[float]]) -> tuple[list[list[float]], list[float], list[float]]:
        """Return the losses of training with ours, by each implementation, with the plain loss, and with the truth."""
        ours = _by_each_implementation(lambda: train(self.ours))
        return ours, train(self.plain(torch.float32)), train(self.plain(torch.float64))


def _by_each_implementation(train: Callable[[], list[float]]) -> list[list[float]]:
    losses = []
    for kernels in (False, True) if backend.INTERPRETED else (False,):
        with lucid.torch.kernels_on_cpu(kernels):
            losses.append(train())
    return losses


SOFT = {"temperature_squared": True}
CASES = {
    "llama": Case(_llama, SOFT),
    "gpt2 with labels": Case(_gpt2, {**SOFT, "hard_label_weight": 0.25}),
    "unequal vocabularies": Case(_llama, SOFT, columns=V + 7),
    "autocast": Case(_llama, SOFT, autocast=True),
}


def _train(case: Case, loss: Loss, compile: Callable[[Any], Any] = lambda step: step) -> list[float]:
    """Losses of the steps; `compile` gets the function from tokens to loss."""
    torch.manual_seed(0)
    teacher, student = _teacher(case.make), case.make(columns=case.columns).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    @compile
    def forward(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            t = teacher(input_ids=ids).logits
        s = student(input_ids=ids).logits
        return loss(s[:, :-1], t[:, :-1], labels[:, 1:])

    batches = [_tokens(BATCH) for _ in range(3)]
    losses = []
    for step in range(STEPS):
        with torch.autocast(DEVICE.type, torch.bfloat16) if case.autocast else contextlib.nullcontext():
            value = forward(*batches[step % 3])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def _assert_agree(
    runs: list[list[float]], plain: list[float], truth: list[float], logits: torch.dtype = torch.float32
) -> None:
    """At every step of each run ours is as near to the truth as the plain expression has been.

    Allowed are besides: with the unit roundoff u of the arithmetic, 8u of what a loss is added up from, which is T²
    times Σ p·(|log p| + |log q| + 1), about 1 + 2 log V; and 4 roundoffs of the logits' dtype, in which gradients leave
    us, of what training has achieved so far.
    """
    assert {len(ours) for ours in runs} == {len(plain)} == {len(truth)}
    size = TEMPERATURE**2 * (1 + 2 * math.log(V))
    astray = 0.0
    for step in range(len(truth)):
        astray = max(astray, abs(plain[step] - truth[step]))
        budget = 2 * astray + 8 * ROUNDOFF[torch.float32] * size + 4 * ROUNDOFF[logits] * abs(truth[0] - truth[step])
        error = max(abs(ours[step] - truth[step]) for ours in runs)
        assert error <= budget, f"step {step}: off by {error:.2g} from {truth[step]}, allowed {budget:.2g}"
    assert sum(truth[-6:]) < 0.8 * sum(truth[:6]), "nothing was learnt"


@pytest.mark.parametrize("name", CASES)
def test_a_student_learns_from_its_teacher_as_with_the_plain_expression(name: str) -> None:
    case = CASES[name]
    logits = torch.bfloat16 if case.autocast else torch.float32
    _assert_agree(*case.runs(lambda loss: _train(case, loss)), logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_the_loss_compiles_in_one_graph_and_training_is_the_same() -> None:
    case = CASES["gpt2 with labels"]

    def train(loss: Loss) -> list[float]:
        return _train(case, torch.compile(loss, fullgraph=True, backend="aot_eager"))

    _assert_agree(*case.runs(train))


def _llama_layer(width: int = WIDTH, columns: int = V) -> Any:
    return _llama(width, columns, layers=1)


def _gpt2_layer(width: int = WIDTH, columns: int = V) -> Any:
    return _gpt2(width, columns, layers=1)


# Inductor takes half a minute for each of these models' graphs on a CPU, and calls our operators as aot_eager does.
@pytest.mark.parametrize("make", [_llama_layer, _gpt2_layer])
def test_model_and_loss_compile_in_one_graph_and_training_is_the_same(make: Callable[..., Any]) -> None:
    """All three are compiled: that the compiler takes a model apart changes its logits, whatever the loss."""
    case = Case(make, {**SOFT, "hard_label_weight": 0.25})

    def compiled(step: Any) -> Any:
        _forget_compiled()
        return torch.compile(step, fullgraph=True, backend="aot_eager")

    _assert_agree(*case.runs(lambda loss: _train(case, loss, compiled)))


class _Trainer(transformers.Trainer):
    """As a script has it that distils: a loss of its own, and a teacher."""

    def __init__(self, *args: Any, teacher: Any, loss: Loss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.loss = teacher, loss
        self.losses: list[float] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        labels = inputs.pop("labels")
        with torch.no_grad():
            t = self.teacher(**inputs).logits
        s = model(**inputs).logits
        loss = self.loss(s[:, :-1], t[:, :-1], labels[:, 1:], normalizer=num_items_in_batch)
        self.losses.append(loss.item())
        return loss


def _by_trainer(case: Case, loss: Loss, folder: Path, *, rows: int, accumulated: int) -> list[float]:
    """Losses of the steps, each the sum over the batches whose gradients are accumulated."""
    torch.manual_seed(0)
    teacher, student = _teacher(case.make), case.make(columns=case.columns)
    tokens = (part.cpu() for part in _tokens(3 * BATCH))
    data = [{"input_ids": ids, "labels": labels} for ids, labels in zip(*tokens, strict=True)]
    options = {"max_steps": STEPS, "learning_rate": 1e-2, "max_grad_norm": 1.0, "logging_strategy": "no"}
    options = processes.arguments(rows, accumulated, output_dir=str(folder), **options)
    arguments = transformers.TrainingArguments(**options)
    trainer = _Trainer(model=student, args=arguments, train_dataset=data, teacher=teacher, loss=loss)
    trainer.train()
    losses = trainer.losses
    assert len(losses) == STEPS * accumulated
    return [sum(losses[i : i + accumulated]) for i in range(0, len(losses), accumulated)]


@pytest.mark.parametrize("name", ["llama", "gpt2 with labels"])
def test_trainer_accumulates_gradients_by_the_number_of_tokens_in_all_its_batches(name: str, tmp_path: Path) -> None:
    case = CASES[name]

    def at_once(loss: Loss) -> list[float]:
        return _by_trainer(case, loss, tmp_path, rows=BATCH, accumulated=1)

    ours, plain, truth = case.runs(lambda loss: _by_trainer(case, loss, tmp_path, rows=2, accumulated=2))
    _assert_agree(ours, plain, truth)
    # In a single batch the same gradients are added up in another order; the plain one says what that does.
    truth = at_once(case.plain(torch.float64))
    _assert_agree(ours, plain, truth)
    _assert_agree(_by_each_implementation(lambda: at_once(case.ours)), plain, truth)
