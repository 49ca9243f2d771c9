"""``python -m lucid.examples.distill_transformer``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lucid
from lucid.examples.command_line import Parser, exit_code, int_in_range
from lucid.examples.distill_transformer.model import Size, Transformer
from lucid.examples.distill_transformer.training import Loss, Plan, Training, loss_of_labels, loss_of_teacher

PICTURE = "losses.png"


@dataclass(frozen=True)
class Setup:
    """Sizes of both models and of their trainings."""

    teacher: Size
    student: Size
    teacher_plan: Plan
    student_plan: Plan


# Without a GPU a launch costs milliseconds, and a program of attention more: few layers, heads and windows.
CPU_SETUP = Setup(
    teacher=Size(vocabulary=320, context=64, width=96, heads=2, layers=1),
    student=Size(vocabulary=320, context=64, width=48, heads=1, layers=1),
    teacher_plan=Plan(steps=180, batch=8, length=64, learning_rate=4e-3),
    student_plan=Plan(steps=100, batch=8, length=64, learning_rate=8e-3),
)
#: 26 and 3 million parameters.
GPU_SETUP = Setup(
    teacher=Size(vocabulary=8192, context=256, width=512, heads=8, layers=7, dropout=0.2),
    student=Size(vocabulary=8192, context=256, width=192, heads=4, layers=3),
    teacher_plan=Plan(steps=1000, batch=64, length=256, learning_rate=1e-3, evaluations=11),
    student_plan=Plan(steps=1000, batch=64, length=256, learning_rate=2e-3, evaluations=11),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    return exit_code(parser, lambda: _run(parser, options), "examples", ("rich", "matplotlib", "tokenizers"))


def _build_parser() -> Parser:
    parser = Parser(
        prog="python -m lucid.examples.distill_transformer",
        description="Train a transformer on Python's language reference, then a smaller one twice for as many steps: "
        "from the text alone, and from the first one's distributions, with lucid.nn.KLDivLoss. Everything is computed "
        "by lucid's kernels.",
    )
    for name, plan, gpu in (
        ("teacher", CPU_SETUP.teacher_plan, GPU_SETUP.teacher_plan),
        ("student", CPU_SETUP.student_plan, GPU_SETUP.student_plan),
    ):
        parser.add_argument(
            f"--{name}-steps",
            type=int_in_range(at_least=1),
            metavar="N",
            help=f"training steps of the {name} (default: {plan.steps:,}, on a GPU {gpu.steps:,})",
        )
    parser.add_argument("--seed", type=int_in_range(at_least=0), default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("transformer_output"),
        metavar="DIR",
        help="directory for checkpoints and the picture (default: transformer_output)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoints in the directory, bit for bit"
    )
    return parser


def _run(parser: Parser, options: argparse.Namespace) -> int:
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: cannot make the directory {str(options.output)!r}: {error.strerror}")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lucid.examples.distill_transformer.results import draw, print_table
    from lucid.examples.distill_transformer.text import load_texts

    console = Console()
    on_gpu = lucid.get_default_device().type == "cuda"
    setup = GPU_SETUP if on_gpu else CPU_SETUP
    if options.teacher_steps is not None:
        setup = replace(setup, teacher_plan=replace(setup.teacher_plan, steps=options.teacher_steps))
    if options.student_steps is not None:
        setup = replace(setup, student_plan=replace(setup.student_plan, steps=options.student_steps))
    with console.status("learning a byte-pair encoding of the text"):
        texts = load_texts(setup.teacher.vocabulary)
    columns = (
        TextColumn("{task.description:>20}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]} bits"),
        TimeRemainingColumn(),
    )

    def train(
        progress: Progress, name: str, size: Size, plan: Plan, teacher: Transformer | None, labels: bool
    ) -> Training:
        lucid.manual_seed(options.seed)
        model = Transformer(replace(size, vocabulary=texts.vocabulary))
        loss: Loss = loss_of_labels(model) if labels or teacher is None else loss_of_teacher(model, teacher)
        path = options.output / f"{name.replace(' ', '_')}.safetensors"
        training = Training(model, loss, texts, plan, options.seed, path, teacher)
        if options.resume and path.exists():
            training.resume()
        task = progress.add_task(name, total=plan.steps, completed=training.step, loss="-")
        for bits in training.run():
            progress.update(task, advance=1, loss=f"{bits:.2f}")
        model.eval()
        return training

    try:
        with Progress(*columns, console=console, refresh_per_second=4) as progress:
            of_teacher = train(progress, "teacher", setup.teacher, setup.teacher_plan, None, True)
            students = {
                name: train(progress, name, setup.student, setup.student_plan, of_teacher.model, labels)
                for name, labels in (("student of labels", True), ("student of teacher", False))
            }
    except ValueError as error:
        parser.error(f"argument --resume: {error}")
    print_table(console, of_teacher, students)
    draw(of_teacher, students).savefig(options.output / PICTURE)
    console.print(f"wrote {options.output / PICTURE}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
