"""``python -m lucid.examples.char_lm``."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import lucid
from lucid.examples.char_lm.distil import (
    CPU_SETUP,
    GPU_SETUP,
    LogProbabilities,
    Score,
    distil,
    sample_held_out,
    sample_text,
    score,
)
from lucid.examples.char_lm.student import Student, log_probabilities
from lucid.examples.char_lm.teacher import NGramTeacher, unigram_model
from lucid.examples.char_lm.text import language_reference, load_corpus
from lucid.examples.command_line import Parser, install_extra, whole_number

PROMPT = "The "
SAMPLE_LENGTH = 60

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        _run(parser, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("rich", "matplotlib", "pydoc_data"):
            raise
        needed = "a Python with pydoc_data" if "pydoc" in error.name else install_extra("demo")
        print(f"{parser.prog}: error: {error.name} is missing; the demo needs {needed}", file=sys.stderr)
        return EXIT_FAILURE
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _build_parser() -> Parser:
    parser = Parser(
        prog="python -m lucid.examples.char_lm",
        description="Distil a character-level 5-gram model of Python's language reference into a neural "
        "network; show how close it came, and write a loss curve and the numbers.",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(at_least=1),
        help=f"training steps (default: {CPU_SETUP.steps:,}, on a GPU {GPU_SETUP.steps:,})",
    )
    parser.add_argument("--device", help="'cpu', 'cuda' or 'cuda:N' (default: a GPU where there is one)")
    parser.add_argument("--seed", type=whole_number(at_least=0), default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="directory for the picture and the numbers (default: demo_output)",
    )
    return parser


def _open_device(parser: Parser, name: str | None) -> lucid.device:
    """The device to train on, after one addition there: not every device with a valid name can compute."""
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


def _run(parser: Parser, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    device = _open_device(parser, options.device)
    directory = _open_directory(parser, options.output)
    print(f"demo     a 5-gram model distilled into a small network on {device}; results go to {directory}", flush=True)
    # These need the `demo` extra, which --help and the complaints above do without.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lucid.examples.char_lm.report import NUMBERS, PICTURE, Results, print_results, save_results

    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    setup = GPU_SETUP if device.type == "cuda" else CPU_SETUP
    if options.steps is not None:
        setup = replace(setup, steps=options.steps)
    rng = np.random.default_rng(options.seed)
    lucid.manual_seed(options.seed)

    with console.status("reading the text and counting n-grams"):
        corpus = load_corpus(language_reference())
        n_tokens = len(corpus.vocabulary)
        teacher = NGramTeacher(corpus.train, n_tokens)
        held_out = sample_held_out(corpus.held_out, teacher, setup, rng)
    student = Student(n_tokens, setup.context_length, setup.embedding_dim, setup.hidden).to(device)
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
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("training", total=setup.steps, loss="-")

        def on_step(loss: float) -> None:
            progress.update(task, advance=1, loss=f"{loss:.2f}")

        def on_evaluation(step: int, latest: Score) -> None:
            say(f"step     {step:,} of {setup.steps:,}, held-out KL {latest.kl:.3f} bits per character")

        history = distil(student, teacher, corpus.train, held_out, setup, device, rng, on_step, on_evaluation)

    prompt = corpus.vocabulary.encode(PROMPT.rjust(setup.context_length, "\n"))

    def write_line(model: LogProbabilities) -> str:
        tokens = sample_text(model, prompt, SAMPLE_LENGTH, rng)
        return " ".join(corpus.vocabulary.decode(tokens).split())

    with console.status(f"sampling {SAMPLE_LENGTH} characters from teacher and student"):
        teacher_sample = write_line(lambda contexts: np.log(teacher.probabilities(contexts)))
        student_sample = write_line(lambda contexts: log_probabilities(student, contexts, device))
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
        teacher_sample=teacher_sample,
        student_sample=student_sample,
    )
    print_results(console, results)
    with console.status("drawing the picture"):
        save_results(directory, results)
    seconds = time.perf_counter() - started
    say(f"wrote {directory / PICTURE} and {directory / NUMBERS} after {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
