"""The examples of lucid.torch, as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid
from lucid.examples import distil_hidden, distil_llama, port_script
from lucid.examples.char_lm import __main__ as char_lm
from lucid.examples.char_lm.teacher import NGramTeacher
from tests.commands import Main, assert_refused

ROOT = Path(lucid.__file__).parents[1]
#: The commands, and options that only some have.
MAINS: dict[Main, tuple[str, ...]] = {
    distil_llama.main: ("--batch",),
    distil_hidden.main: ("--batch", "--vocabulary"),
    port_script.main: (),
    char_lm.main: ("--device", "--output"),
}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=300
    )


def test_a_few_steps_already_bring_the_llama_closer_to_its_teacher() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("transformers")
    done = _run("-W", "error", "-m", "lucid.examples.distil_llama", "--steps", "3", "--batch", "4")
    assert done.returncode == 0, done.stderr
    cells = [re.split("[│|]", line) for line in done.stdout.splitlines()]
    rows = [[cell.strip() for cell in row[1:4]] for row in cells if len(row) == 5]
    table = {name: (float(kl), float(bits)) for name, kl, bits in rows if kl[0].isdigit()}
    assert list(table) == ["unigram", "student, untrained", "student, after 3 steps", "teacher"]
    assert table["student, after 3 steps"] < table["student, untrained"]
    assert table["teacher"][0] == 0 < table["unigram"][0] < table["student, untrained"][0]
    assert table["teacher"][1] < table["unigram"][1]


def test_the_teachers_logits_are_of_what_follows_the_same_characters() -> None:
    rng = np.random.default_rng(0)
    corpus = rng.integers(0, 7, 400)
    teacher = NGramTeacher(corpus, 7, order=3)
    text, held_out, logits, counts = distil_llama.sample(corpus, 5, teacher, rng)
    assert text.shape == counts.shape == (5, distil_llama.WINDOW)
    assert counts.all(0).tolist() == [False] + [True] * (distil_llama.WINDOW - 1)
    for row in range(5):
        for position in range(1, distil_llama.WINDOW):
            before = text[row, position - 1 : position + 1].numpy()
            expected = teacher.probabilities(before[None])[0]
            np.testing.assert_allclose(logits[row, position].softmax(-1), expected, rtol=1e-5)
    np.testing.assert_allclose(logits[counts].softmax(-1), held_out.teacher, rtol=1e-5)
    np.testing.assert_array_equal(held_out.next_tokens.reshape(5, -1)[:, :-1], text[:, 2:])


def test_from_hidden_states_a_student_learns_the_same_and_logits_take_more_memory() -> None:
    pytest.importorskip("transformers")
    done = _run("-W", "error", "-m", "lucid.examples.distil_hidden", "--steps", "5", "--batch", "2")
    assert done.returncode == 0, done.stderr
    losses = [tuple(map(float, row)) for row in re.findall(r"^ +\d+ +(\d\S*) +(\d\S*)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 3
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in losses)
    assert losses[-1] < losses[0]
    logits, chunk, *_ = map(float, re.findall(r"([\d.]+) MiB$", done.stdout, re.MULTILINE))
    assert logits == pytest.approx(3 * 2 * distil_llama.WINDOW * 32_000 * 4 / 2**20, abs=0.05)
    assert chunk == distil_hidden.WORKSPACE


def test_the_ported_script_is_three_lines_and_has_the_same_losses(capsys: pytest.CaptureFixture[str]) -> None:
    assert port_script.main(["--steps", "5"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert sum(line.startswith("+ ") for line in lines) == sum(line.startswith("- ") for line in lines) == 3
    assert all("lucid" not in line for line in lines if line.startswith("- "))
    max_abs_diff = float(printed.rsplit(maxsplit=1)[-1])
    assert 0 <= max_abs_diff < 1e-5


@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize(
    "arguments", [("--steps", "0"), ("--steps", "x"), ("--seed", "-1"), ("--seed", str(2**64)), ("--unknown",)]
)
def test_every_bad_value_is_refused_in_one_line(
    main: Main, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(main, capsys, arguments[0], *arguments)


@pytest.mark.parametrize("main", MAINS)
def test_help_names_every_option(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--steps", "--seed", *MAINS[main]):
        assert option in printed


@pytest.mark.parametrize("example", [distil_llama, distil_hidden])
def test_an_interrupted_example_says_so_and_ends_with_130(
    example: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "_run", interrupt)
    assert example.main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("example", "missing"),
    [("distil_llama", "rich"), ("distil_llama", "transformers"), ("distil_hidden", "transformers")],
)
def test_without_the_extra_one_line_says_what_to_install(example: str, missing: str) -> None:
    program = f"""
import runpy, sys
sys.modules[{missing!r}] = None
runpy.run_module("lucid.examples.{example}", run_name="__main__")
"""
    done = _run("-c", program)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert 'pip install ".[examples]"' in done.stderr
