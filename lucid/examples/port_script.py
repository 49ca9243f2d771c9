"""Port a distillation script of PyTorch by changing three lines; run it with ``python -m lucid.examples.port_script``.

`before` is the script as one finds it, `after` the same with the loss of :mod:`lucid.torch`. Both run, and what is
printed are the lines that differ, and the losses.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

import lucid.torch
from lucid.examples.command_line import Parser, int_in_range


def before(teacher: nn.Module, student: nn.Module, batches: list[torch.Tensor], T: float = 2.0) -> list[float]:
    """Distil; returns the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    criterion = nn.KLDivLoss(reduction="batchmean")
    losses = []
    for x in batches:
        with torch.no_grad():
            targets = F.softmax(teacher(x) / T, dim=-1)
        loss = criterion(F.log_softmax(student(x) / T, dim=-1), targets) * T**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def after(teacher: nn.Module, student: nn.Module, batches: list[torch.Tensor], T: float = 2.0) -> list[float]:
    """Distil; returns the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    criterion = lucid.torch.DistillationLoss(temperature=T, temperature_squared=True)
    losses = []
    for x in batches:
        with torch.no_grad():
            targets = teacher(x)
        loss = criterion(student(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and compare; returns the exit code."""
    parser = Parser(
        prog="python -m lucid.examples.port_script",
        description="Run a distillation script of PyTorch and its port to lucid.torch; show where they differ, and "
        "that their losses do not.",
    )
    parser.add_argument("--steps", type=int_in_range(at_least=1), default=30, help="training steps (default: 30)")
    parser.add_argument("--seed", type=int_in_range(at_least=0), default=0, help="random seed (default: 0)")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    losses = []
    for script in (before, after):
        torch.manual_seed(options.seed)
        teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1000)).to(device)
        student = nn.Linear(16, 1000).to(device)
        batches = [torch.randn(32, 16, device=device) for _ in range(options.steps)]
        losses.append(script(teacher, student, batches))

    old, new = (inspect.getsource(script).splitlines()[2:] for script in (before, after))
    print(*(line for line in difflib.ndiff(old, new) if line[0] in "-+"), sep="\n")
    print("\nstep      before       after")
    for step in sorted({1, (options.steps + 1) // 2, options.steps}):
        print(f"{step:4d}  {losses[0][step - 1]:10.7f}  {losses[1][step - 1]:10.7f}")
    max_abs_diff = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"largest difference of the {options.steps} losses: {max_abs_diff:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
