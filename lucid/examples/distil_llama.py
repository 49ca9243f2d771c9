"""Distil a 5-gram model into a tiny Llama of Hugging Face's transformers; ``python -m lucid.examples.distil_llama``.

Text and teacher are those of :mod:`lucid.examples.char_lm`: Python's language reference, and an interpolated model that
counts it. Logarithms of its probabilities are logits as good as any, so it is a teacher without a download. The
student starts from random weights and learns with :class:`lucid.torch.DistillationLoss`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import lucid
import lucid.torch
from lucid.examples.char_lm.distil import HeldOut, Score, score
from lucid.examples.char_lm.teacher import NGramTeacher, unigram_model
from lucid.examples.char_lm.text import Corpus, Tokens, language_reference, load_corpus
from lucid.examples.command_line import Parser, exit_code, int_in_range

WINDOW = 32
"""Characters that the student sees at once."""
HELD_OUT_WINDOWS = 128
LEARNING_RATE = 4e-3


def sample(
    corpus: Tokens, windows: int, teacher: NGramTeacher, rng: np.random.Generator
) -> tuple[torch.Tensor, HeldOut, torch.Tensor, torch.Tensor]:
    """Texts (windows, WINDOW); their positions that count, for scores; the teacher's logits; a mask of these positions.

    The teacher looks a few characters back, which the first positions of a window do not have. They do not count.
    """
    starts = rng.integers(0, len(corpus) - WINDOW, windows)
    text = corpus[starts[:, None] + np.arange(WINDOW + 1)]
    first = teacher.context_length - 1
    contexts = np.lib.stride_tricks.sliding_window_view(text[:, :-1], teacher.context_length, axis=1)
    contexts = contexts.reshape(-1, teacher.context_length)
    probabilities = teacher.probabilities(contexts)
    logits = torch.zeros(windows, WINDOW, teacher.vocabulary_size)
    logits[:, first:] = torch.from_numpy(np.log(probabilities)).view(windows, WINDOW - first, -1)
    counts = (torch.arange(WINDOW) >= first).expand(windows, WINDOW)
    held_out = HeldOut(contexts, text[:, first + 1 :].reshape(-1), probabilities)
    return torch.from_numpy(text[:, :-1]), held_out, logits, counts


def evaluate(student: Any, text: torch.Tensor, held_out: HeldOut, counts: torch.Tensor) -> Score:
    """Score the student where the teacher has its context."""
    with torch.no_grad():
        log_q = student(input_ids=text).logits.double().log_softmax(-1)[counts]
    return score(log_q.cpu().numpy(), held_out)


def build_llama(columns: int, width: int = 64) -> Any:
    """A Llama with random weights, and hidden states of this width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=columns,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    parser = Parser(
        prog="python -m lucid.examples.distil_llama",
        description="Distil a character-level 5-gram model of Python's language reference into a tiny Llama with "
        "lucid.torch; show how close it came.",
    )
    parser.add_argument("--steps", type=int_in_range(at_least=1), default=700, help="training steps (default: 700)")
    parser.add_argument(
        "--batch", type=int_in_range(at_least=1, below=2**20), default=32, help="texts in a step (default: 32)"
    )
    parser.add_argument("--seed", type=int_in_range(at_least=0), default=0, help="random seed (default: 0)")
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), "examples", ("rich", "transformers"))


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # more lose time waiting for each other: the student's products are small
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    corpus: Corpus = load_corpus(language_reference())
    teacher = NGramTeacher(corpus.train, len(corpus.vocabulary))
    text, held_out, _, counts = sample(corpus.held_out, HELD_OUT_WINDOWS, teacher, rng)
    text, counts = text.to(device), counts.to(device)
    student = build_llama(len(corpus.vocabulary)).to(device)
    n_parameters = sum(parameter.numel() for parameter in student.parameters())
    console.print(f"teacher  interpolated {teacher.order}-gram model, {len(teacher.table):,} contexts", highlight=False)
    console.print(f"student  Llama of {n_parameters:,} parameters, on {device}", highlight=False)
    before = evaluate(student, text, held_out, counts)

    criterion = lucid.torch.DistillationLoss()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, options.steps + 1, pct_start=0.1)
    columns = (
        *(TextColumn("training"), BarColumn(bar_width=None), MofNCompleteColumn()),
        *(TextColumn("KL {task.fields[loss]} bits"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("training", total=options.steps, loss="-")
        for _ in range(options.steps):
            texts, _, targets, mask = sample(corpus.train, options.batch, teacher, rng)
            logits = student(input_ids=texts.to(device)).logits
            loss = criterion(logits, targets.to(device), weight=mask.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=f"{loss.item() / math.log(2):.2f}")

    table = Table("model", title="bits per character of held-out text")
    table.add_column("KL from the teacher", justify="right")
    table.add_column("cross-entropy", justify="right")
    for name, result in {
        "unigram": score(np.log(unigram_model(corpus.train, len(corpus.vocabulary))), held_out),
        "student, untrained": before,
        f"student, after {options.steps} steps": evaluate(student, text, held_out, counts),
        "teacher": score(np.log(held_out.teacher), held_out),
    }.items():
        table.add_row(name, f"{result.kl:.3f}", f"{result.cross_entropy:.3f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
