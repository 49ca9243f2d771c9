"""Distil a Llama into a narrower one from hidden states, without logits; ``python -m lucid.examples.distil_hidden``.

Both have random weights and a vocabulary of a real model's size. The same training, from the same weights and on the
same batches, runs from logits and from hidden states; what is printed are the losses of both, and the memory.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import lucid.torch
from lucid.examples.command_line import Parser, exit_code, int_in_range
from lucid.examples.distil_llama import WINDOW, build_llama
from lucid.examples.distributed import FromHiddenStates

STUDENT, TEACHER = 64, 256
"""Widths of hidden states."""
TOKENS = 100
"""Tokens that occur in the texts."""
BATCHES = 4
"""Texts are seen again after so many steps."""
WORKSPACE = 8
"""MiB for logits of a chunk of rows."""
LEARNING_RATE = 1e-2

Loss = Callable[[Any, Any, Tensor], Tensor]


def from_logits(student: Any, teacher: Any, text: Tensor) -> Tensor:
    """The loss as a script has it that distils from logits."""
    with torch.no_grad():
        teacher_logits = teacher(input_ids=text).logits
    return lucid.torch.distillation_loss(student(input_ids=text).logits, teacher_logits)


def from_hidden_states(student: Any, teacher: Any, text: Tensor) -> Tensor:
    """The same loss without logits."""
    model = FromHiddenStates(
        student.model, student.lm_head, lucid.torch.LinearDistillationLoss(workspace_mib=WORKSPACE)
    )
    with torch.no_grad():
        teacher_hidden = teacher.model(input_ids=text).last_hidden_state
    return model(text, teacher_hidden=teacher_hidden, teacher_weight=teacher.lm_head.weight)


def train(student: Any, teacher: Any, texts: list[Tensor], loss_of: Loss) -> list[float]:
    """Train the student; returns the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    losses = []
    for text in texts:
        loss = loss_of(student, teacher, text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and compare; returns the exit code."""
    parser = Parser(
        prog="python -m lucid.examples.distil_hidden",
        description="Distil a Llama with random weights into a narrower one, from logits and from hidden states with "
        "lucid.torch; show that the losses are the same, and how much memory the logits take.",
    )
    parser.add_argument("--steps", type=int_in_range(at_least=1), default=20, help="training steps (default: 20)")
    parser.add_argument(
        "--batch", type=int_in_range(at_least=1, below=2**20), default=8, help="texts in a step (default: 8)"
    )
    parser.add_argument(
        "--vocabulary",
        type=int_in_range(at_least=TOKENS, below=2**24),
        default=32_000,
        help="columns of the logits (default: 32000)",
    )
    parser.add_argument("--seed", type=int_in_range(at_least=0), default=0, help="random seed (default: 0)")
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(options), "examples", ("transformers",))


def _run(options: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # more lose time waiting for each other: the products are small
    torch.manual_seed(options.seed)
    student, teacher = (build_llama(options.vocabulary, width).to(device) for width in (STUDENT, TEACHER))
    teacher.eval().requires_grad_(False).lm_head.weight.mul_(10)  # else its distributions are nearly uniform
    batches = [torch.randint(TOKENS, (options.batch, WINDOW), device=device) for _ in range(BATCHES)]
    texts = list(itertools.islice(itertools.cycle(batches), options.steps))
    print(f"teacher  Llama with hidden states of {TEACHER}, random weights")
    print(f"student  Llama with hidden states of {STUDENT}, on {device}")
    print(f"a step   {texts[0].numel():,} tokens, {options.vocabulary:,} columns of logits\n")

    losses, peaks = [], []
    for loss_of in (from_logits, from_hidden_states):
        model = copy.deepcopy(student)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        losses.append(train(model, teacher, texts, loss_of))
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())

    print("step  from logits  from hidden states")
    for step in sorted({1, (options.steps + 1) // 2, options.steps}):
        print(f"{step:4d}  {losses[0][step - 1]:11.7f}  {losses[1][step - 1]:18.7f}")
    max_abs_diff = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"largest difference of the {options.steps} losses: {max_abs_diff:.1e}\n")

    logits = texts[0].numel() * options.vocabulary * teacher.lm_head.weight.itemsize
    print(f"logits of student and teacher, and a gradient  {_mib(3 * logits)}")
    print(f"instead, logits of a chunk of rows, at most    {_mib(WORKSPACE * 2**20)}")
    if peaks:
        print(f"peak of the allocator, from logits             {_mib(peaks[0])}")
        print(f"peak of the allocator, from hidden states      {_mib(peaks[1])}")


def _mib(size: float) -> str:
    return f"{size / 2**20:8,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
