"""``python -m lucid.examples.char_lm``."""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lucid
from lucid.examples.char_lm import student as in_lucid
from lucid.examples.char_lm import torch_student as in_torch
from lucid.examples.char_lm.distil import (
    CPU_SETUP,
    GPU_SETUP,
    History,
    LogProbabilities,
    Score,
    distil,
    sample_held_out,
    sample_text,
    score,
    train_batches,
)
from lucid.examples.char_lm.teacher import NGramTeacher, unigram_model
from lucid.examples.char_lm.text import language_reference, load_corpus
from lucid.examples.command_line import EXIT_FAILURE, EXIT_INTERRUPTED, Parser, install_extra, int_in_range

PROMPT = "The "
SAMPLE_LENGTH = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        return _run(parser, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("rich", "matplotlib", "pydoc_data"):
            raise
        needed = "a Python with pydoc_data" if package == "pydoc_data" else install_extra("demo")
        print(f"{parser.prog}: error: {package} is missing; the demo needs {needed}", file=sys.stderr)
        return EXIT_FAILURE
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_FAILURE


def _build_parser() -> Parser:
    parser = Parser(
        prog="python -m lucid.examples.char_lm",
        description="Distil a character-level 5-gram model of Python's language reference into a neural network, in "
        "lucid and in PyTorch; show how close each came, and write the loss curves and the numbers. Exit code 1 if the "
        "two differ by more than rounding explains.",
    )
    parser.add_argument(
        "--steps",
        type=int_in_range(at_least=1),
        help=f"training steps (default: {CPU_SETUP.steps:,}, on a GPU {GPU_SETUP.steps:,})",
    )
    parser.add_argument("--device", help="'cpu', 'cuda' or 'cuda:N' (default: a GPU where there is one)")
    parser.add_argument("--seed", type=int_in_range(at_least=0), default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="directory for the picture and the numbers (default: demo_output)",
    )
    return parser


def _open_device(parser: Parser, name: str | None) -> lucid.device:
    """Return the device to train on, after one addition there: not every device with a valid name can compute."""
    try:
        device = lucid.get_default_device() if name is None else lucid.device(name)
        (lucid.tensor([1.0], device=device) + 1.0).item()
    except (ValueError, RuntimeError) as error:
        parser.error(f"argument --device: {' '.join(str(error).split())}")
    return device


def _open_directory(parser: Parser, path: Path) -> Path:
    """Make the output directory now: its absence should not come to light after the training."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: cannot make the directory {str(path)!r}: {error.strerror}")
    if not os.access(path, os.W_OK):
        parser.error(f"argument --output: cannot write to the directory {str(path)!r}")
    return path


def _run(parser: Parser, options: argparse.Namespace) -> int:
    started = time.perf_counter()
    device = _open_device(parser, options.device)
    directory = _open_directory(parser, options.output)
    print(f"demo     a 5-gram model distilled into a small network on {device}; results go to {directory}", flush=True)
    # These need the `demo` extra, which --help and the complaints above do without.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lucid.examples.char_lm.results import NUMBERS, PICTURE, Results, print_results, save_results

    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    setup = GPU_SETUP if device.type == "cuda" else CPU_SETUP
    if options.steps is not None:
        setup = replace(setup, steps=options.steps)
    torch.set_num_threads(1)  # the students' products are small: further threads only wait for work
    rng = np.random.default_rng(options.seed)
    lucid.manual_seed(options.seed)

    with console.status("reading the text and counting n-grams"):
        corpus = load_corpus(language_reference())
        n_tokens = len(corpus.vocabulary)
        teacher = NGramTeacher(corpus.train, n_tokens)
        held_out = sample_held_out(corpus.held_out, teacher, setup, rng)
    sizes = (n_tokens, setup.context_length, setup.embedding_dim, setup.hidden)
    student = in_lucid.Student(*sizes).to(device)
    torch_student = in_torch.Student(*sizes).to(str(device))
    # The same weights, and below the same batches: what then differs is rounding.
    torch_student.load_state_dict({name: value.to_torch() for name, value in student.state_dict().items()})
    n_parameters = sum(math.prod(parameter.shape) for parameter in student.parameters())
    n_train, n_held_out = len(corpus.train), len(corpus.held_out)
    python = platform.python_version()
    layers = f"{setup.context_length} characters x {setup.embedding_dim} -> {setup.hidden} tanh -> {n_tokens}"
    say(f"text     Python {python}'s language reference, {corpus.n_characters:,} characters;")
    say(f"         without repeated paragraphs {n_train:,} to learn from and {n_held_out:,} held out")
    say(f"teacher  interpolated {teacher.order}-gram model, {len(teacher.table):,} contexts")
    say(f"student  {layers}, {n_parameters:,} parameters, on {device}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("KL {task.fields[loss]} bits"),
        TimeRemainingColumn(),
    )

    def train(name: str, front_end: Any, student: Any, rng: np.random.Generator) -> History:
        task = progress.add_task(name, total=setup.steps, loss="-")

        def on_step(loss: float) -> None:
            progress.update(task, advance=1, loss=f"{loss:.2f}")

        def on_evaluation(step: int, latest: Score) -> None:
            say(f"{name:8} {step:,} of {setup.steps:,} steps, held-out KL {latest.kl:.3f} bits per character")

        batches = train_batches(corpus.train, teacher, setup, rng)
        losses = front_end.train(student, batches, setup.betas)
        model = functools.partial(front_end.log_probabilities, student)
        return distil(losses, model, held_out, setup, on_step, on_evaluation)

    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        same_batches = copy.deepcopy(rng)
        history = train("lucid", in_lucid, student, rng)
        torch_history = train("PyTorch", in_torch, torch_student, same_batches)

    prompt = corpus.vocabulary.encode(PROMPT.rjust(setup.context_length, "\n"))

    def write_line(model: LogProbabilities) -> str:
        tokens = sample_text(model, prompt, SAMPLE_LENGTH, rng)
        return " ".join(corpus.vocabulary.decode(tokens).split())

    with console.status(f"sampling {SAMPLE_LENGTH} characters from teacher and student"):
        teacher_sample = write_line(lambda contexts: np.log(teacher.probabilities(contexts)))
        student_sample = write_line(functools.partial(in_lucid.log_probabilities, student))
    results = Results(
        facts={
            "python": python,
            "device": str(device),
            "seed": options.seed,
            "setup": asdict(setup),
            "parameters": n_parameters,
            "characters": {"shipped": corpus.n_characters, "train": n_train, "held_out": n_held_out},
        },
        unigram=score(np.log(unigram_model(corpus.train, n_tokens)), held_out),
        teacher=score(np.log(held_out.teacher), held_out),
        history=history,
        torch_history=torch_history,
        teacher_sample=teacher_sample,
        student_sample=student_sample,
    )
    print_results(console, results)
    with console.status("drawing the picture"):
        save_results(directory, results)
    seconds = time.perf_counter() - started
    say(f"wrote {directory / PICTURE} and {directory / NUMBERS} after {seconds:.0f} s")
    return 0 if results.agree else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
