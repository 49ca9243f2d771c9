"""The demo: its teacher against a count by hand, its arithmetic, and the program as a user runs it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.examples.char_lm import torch_student
from lucid.examples.char_lm.__main__ import main
from lucid.examples.char_lm.distil import HeldOut, Setup, learning_rate, sample_text, score
from lucid.examples.char_lm.teacher import NGramTeacher, unigram_model
from lucid.examples.char_lm.text import UNKNOWN, Corpus, Vocabulary, contexts_at, language_reference, load_corpus
from tests.commands import assert_refused


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The demo runs torch in one thread."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


DEMO = [sys.executable, "-m", "lucid.examples.char_lm"]
ROOT = Path(lucid.__file__).parents[1]

RIDDLE = "abracadabra abba cadabra bad crab a cab abracadabra"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(language_reference())


def probability_by_hand(text: str, alphabet: str, order: int, context: str, character: str) -> float:
    """Interpolated Kneser-Ney by its definition, from strings and sets alone."""
    windows = [text[i : i + order] for i in range(len(text) - order + 1)]

    def counts(length: int) -> dict[str, int]:
        """Per n-gram of `length` characters: occurrences if longest, else different characters before it."""
        if length == order:
            return {gram: windows.count(gram) for gram in windows}
        longer = {window[-length - 1 :] for window in windows}
        grams = {gram[1:] for gram in longer}
        return {gram: sum(gram == other[1:] for other in longer) for gram in grams}

    def p(history: str) -> float:
        n = counts(len(history) + 1)
        lower = p(history[1:]) if history else 1 / len(alphabet)
        total = sum(n.get(history + c, 0) for c in alphabet)
        if total == 0:
            return lower
        n1 = sum(v == 1 for v in n.values()) or 1
        n2 = sum(v == 2 for v in n.values()) or 1
        discount = n1 / (n1 + 2 * n2)
        different = sum(history + c in n for c in alphabet)
        return (max(n.get(history + character, 0) - discount, 0) + discount * different * lower) / total

    return p(context)


def numbers_of(text: str, alphabet: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([alphabet.index(c) for c in text])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_teacher_gives_the_probabilities_of_a_count_by_hand(order: int) -> None:
    alphabet = "abcdr xy"  # x and y never occur
    teacher = NGramTeacher(numbers_of(RIDDLE, alphabet), len(alphabet), order)
    for context in ["abra", "cada", "a ca", "xabr", "brax", "yyyy", "rabb"]:
        p = teacher.probabilities(numbers_of(context, alphabet)[None])[0]
        for i, character in enumerate(alphabet):
            by_hand = probability_by_hand(RIDDLE, alphabet, order, context[len(context) - order + 1 :], character)
            assert p[i] == pytest.approx(by_hand, rel=1e-12), (context, character)


def test_a_batch_of_contexts_gives_what_each_context_gives_alone() -> None:
    alphabet = "abcdr "
    tokens = numbers_of(RIDDLE, alphabet)
    teacher = NGramTeacher(tokens, len(alphabet), 4)
    contexts = np.random.default_rng(0).integers(0, len(alphabet), (64, 7))
    together = teacher.probabilities(contexts)
    alone = [teacher.probabilities(context[None])[0] for context in contexts]
    np.testing.assert_array_equal(together, alone)


def test_every_distribution_over_the_real_text_is_positive_and_sums_to_one(corpus: Corpus) -> None:
    teacher = NGramTeacher(corpus.train, len(corpus.vocabulary))
    assert teacher.table.shape[1] == len(corpus.vocabulary)
    assert teacher.table.min() > 0
    np.testing.assert_allclose(teacher.table.sum(axis=1), 1, rtol=0, atol=1e-12)
    unigram = unigram_model(corpus.train, len(corpus.vocabulary))
    assert unigram.min() > 0
    assert unigram.sum() == pytest.approx(1, abs=1e-12)


def test_the_teacher_knows_held_out_text_better_than_the_unigram_model_and_shorter_contexts(corpus: Corpus) -> None:
    positions = np.arange(4, len(corpus.held_out))
    contexts, following = contexts_at(corpus.held_out, positions, 4), corpus.held_out[positions]
    bits = []
    for order in (1, 2, 3, 5):
        p = NGramTeacher(corpus.train, len(corpus.vocabulary), order).probabilities(contexts)
        bits.append(-np.log2(p[np.arange(len(p)), following]).mean())
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.5 * bits[0]


@pytest.mark.parametrize(("order", "length"), [(0, 50), (12, 50), (5, 4)])
def test_the_teacher_refuses_orders_it_cannot_count(order: int, length: int) -> None:
    with pytest.raises(ValueError, match="order"):
        NGramTeacher(np.zeros(length, dtype=np.int64), 97, order)


def test_the_teacher_refuses_contexts_shorter_than_it_needs() -> None:
    teacher = NGramTeacher(np.zeros(50, dtype=np.int64), 97, 5)
    with pytest.raises(ValueError, match=r"4 characters .* shape \(3, 2\)"):
        teacher.probabilities(np.zeros((3, 2), dtype=np.int64))


def test_the_vocabulary_gives_back_every_text_it_can_spell() -> None:
    vocabulary = Vocabulary()
    text = 'def f(x):\n    return "~" if x else [] # {@}'
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert sorted(vocabulary.encode(vocabulary.characters)) == list(range(len(vocabulary)))


def test_characters_outside_the_vocabulary_become_the_unknown_character() -> None:
    vocabulary = Vocabulary()
    assert vocabulary.decode(vocabulary.encode("Straße 20°\0")) == f"Stra{UNKNOWN}e 20{UNKNOWN}{UNKNOWN}"


def test_the_split_keeps_each_paragraph_once_and_holds_out_every_tenth() -> None:
    topics = {
        "b": "\n\n".join(f"paragraph {i}" for i in range(15)),
        "a": "paragraph 3\n\n\n\nparagraph 4 — said “twice”  ",
    }
    corpus = load_corpus(topics, hold_out_every=10)
    train, held_out = corpus.vocabulary.decode(corpus.train), corpus.vocabulary.decode(corpus.held_out)
    assert train.count("paragraph 3") == 1
    assert 'paragraph 4 -- said "twice"\n\n' in train
    assert held_out == "\n\nparagraph 8"
    assert "paragraph 8" not in train
    assert corpus.n_characters == sum(map(len, topics.values()))


def test_contexts_are_the_characters_before_each_position_oldest_first() -> None:
    contexts = contexts_at(np.arange(10, 20), np.array([3, 9]), 3)
    np.testing.assert_array_equal(contexts, [[10, 11, 12], [16, 17, 18]])


def test_scores_agree_with_a_calculation_by_hand() -> None:
    teacher = np.array([[0.5, 0.5], [0.75, 0.25]])
    held_out = HeldOut(np.zeros((2, 1), dtype=np.int64), np.array([0, 1]), teacher)
    model = score(np.log([[0.25, 0.75], [0.5, 0.5]]), held_out)
    first = 0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75)
    second = 0.75 * math.log2(0.75 / 0.5) + 0.25 * math.log2(0.25 / 0.5)
    assert model.kl == pytest.approx((first + second) / 2)
    assert model.cross_entropy == pytest.approx((2 + 1) / 2)


def test_one_distribution_is_scored_at_every_position_and_the_teacher_is_0_from_itself() -> None:
    teacher = np.array([[0.5, 0.5], [0.75, 0.25]])
    held_out = HeldOut(np.zeros((2, 1), dtype=np.int64), np.array([0, 1]), teacher)
    assert score(np.log([0.5, 0.5]), held_out) == score(np.log([[0.5, 0.5], [0.5, 0.5]]), held_out)
    assert score(np.log(teacher), held_out).kl == 0


def test_the_learning_rate_rises_then_falls_and_never_is_0() -> None:
    for steps in (1, 2, 3, 100):
        setup = Setup(4, 1, 1, 1, steps=steps, learning_rate=2.0)
        rates = [learning_rate(step, setup) for step in range(1, steps + 1)]
        peak = rates.index(max(rates))
        assert max(rates) == 2.0
        assert min(rates) > 0
        assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)


def test_sampled_characters_come_as_often_as_the_model_says() -> None:
    tokens = sample_text(lambda contexts: np.log([[0.2, 0.5, 0.3]]), np.array([0, 0]), 4000, np.random.default_rng(0))
    assert len(tokens) == 4002
    np.testing.assert_allclose(np.bincount(tokens[2:]) / 4000, [0.2, 0.5, 0.3], atol=0.03)


def metrics_in(directory: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    return metrics


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    directory = tmp_path_factory.mktemp("demo") / "made" / "on demand"
    command = [*DEMO, "--steps", "2", "--seed", "3", "--output", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, directory


def test_a_run_prints_each_model_with_the_numbers_it_saves(short_run: tuple[str, Path]) -> None:
    printed, directory = short_run
    models = metrics_in(directory)["held_out_bits_per_character"]
    rows = [line.replace("|", "│").split("│") for line in printed.splitlines()]
    for name, key in [
        ("unigram", "unigram"),
        ("student, untrained", "student_before"),
        ("student, after 2 steps", "student_after"),
        ("the same in PyTorch", "torch_student_after"),
        ("teacher", "teacher"),
    ]:
        cells = next([cell.strip() for cell in row[1:4]] for row in rows if len(row) == 5 and row[1].strip() == name)
        assert cells == [name, f"{models[key]['kl_from_teacher']:.3f}", f"{models[key]['cross_entropy']:.3f}"]
    assert "student writes: The " in printed


def test_every_held_out_score_is_a_line_of_its_own_in_a_pipe_too(short_run: tuple[str, Path]) -> None:
    printed, directory = short_run
    metrics = metrics_in(directory)
    for name, key in ("lucid   ", "history"), ("PyTorch ", "torch_history"):
        assert metrics[key]["evaluated_at"] == [0, 1, 2]
        assert [line for line in printed.splitlines() if line.startswith(name) and "steps" in line] == [
            f"{name} {step} of 2 steps, held-out KL {score['kl']:.3f} bits per character"
            for step, score in zip(metrics[key]["evaluated_at"], metrics[key]["scores"], strict=True)
        ]


def test_the_students_in_lucid_and_in_pytorch_have_the_same_losses_and_scores(short_run: tuple[str, Path]) -> None:
    printed, directory = short_run
    metrics = metrics_in(directory)
    history, torch_history = metrics["history"], metrics["torch_history"]
    np.testing.assert_allclose(torch_history["train_kl"], history["train_kl"], rtol=1e-5)
    for in_lucid, in_torch in zip(history["scores"], torch_history["scores"], strict=True):
        assert in_torch == pytest.approx(in_lucid, rel=1e-4)
    assert history["train_kl"][0] != history["train_kl"][1]
    lucid_kl, torch_kl = (each["scores"][-1]["kl"] for each in (history, torch_history))
    expected = f"held-out KL {lucid_kl:.5f} in lucid, {torch_kl:.5f} in PyTorch: they agree within 0.005 bits"
    assert expected in printed.splitlines()


def test_another_loss_in_pytorch_is_a_difference_that_ends_the_program_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(torch_student.lucid.torch, "KLDivLoss", lambda reduction: lambda x, target: x.square().mean())
    assert main(["--steps", "1", "--output", str(tmp_path)]) == 1
    assert "in PyTorch: they differ by more than 0.005 bits" in capsys.readouterr().out


def test_two_steps_already_bring_the_student_closer(short_run: tuple[str, Path]) -> None:
    models = metrics_in(short_run[1])["held_out_bits_per_character"]
    assert models["student_after"]["kl_from_teacher"] < models["student_before"]["kl_from_teacher"]
    assert models["teacher"]["kl_from_teacher"] == 0
    assert models["teacher"]["cross_entropy"] < models["unigram"]["cross_entropy"]


def test_the_loss_curve_is_a_picture_with_something_in_it(short_run: tuple[str, Path]) -> None:
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(short_run[1] / "loss.png")
    assert pixels.shape[0] >= 400
    assert pixels.shape[1] >= 600
    assert pixels[..., :3].std() > 0.02


def test_the_same_seed_gives_the_same_numbers(short_run: tuple[str, Path], tmp_path: Path) -> None:
    """Those in lucid to the bit; PyTorch's matrix products on the CPU may round differently in another process."""
    assert main(["--steps", "2", "--seed", "3", "--output", str(tmp_path)]) == 0
    once, again = metrics_in(short_run[1]), metrics_in(tmp_path)
    histories = [metrics.pop("torch_history") for metrics in (once, again)]
    models = [metrics["held_out_bits_per_character"].pop("torch_student_after") for metrics in (once, again)]
    assert again == once
    assert histories[1]["train_kl"] == pytest.approx(histories[0]["train_kl"], rel=1e-5)
    assert models[1] == pytest.approx(models[0], rel=1e-5)


def test_in_a_terminal_every_phase_shows_what_it_does_and_another_seed_gives_other_numbers(
    short_run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    assert main(["--steps", "2", "--seed", "4", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    phases = ["results go to", "counting n-grams", "lucid  ", "PyTorch ", "sampling", "drawing", "wrote"]
    positions = [printed.find(phase) for phase in phases]
    assert -1 not in positions, printed
    assert positions == sorted(positions)
    assert metrics_in(tmp_path)["history"]["train_kl"] != metrics_in(short_run[1])["history"]["train_kl"]


@pytest.mark.parametrize("arguments", [("--steps", "2.5"), ("--device", "nowhere"), ("--device", "cuda:99")])
def test_every_bad_value_is_refused_in_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert_refused(main, capsys, arguments[0], *arguments, "--output", str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(lucid.get_default_device().type == "cuda", reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(main, capsys, "--device", "--device", "cuda")


def test_an_output_directory_that_cannot_be_made_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    assert_refused(main, capsys, "--output", "--output", str(file))
    assert_refused(main, capsys, "--output", "--output", str(file / "below"))
    assert file.read_text() == "kept"


@pytest.mark.parametrize("missing", ["rich", "matplotlib"])
def test_without_the_extra_one_line_says_what_to_install(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or name == "lucid.examples.char_lm.results":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["--output", str(tmp_path)]) == 1
    printed, complaints = capsys.readouterr()
    assert len(complaints.splitlines()) == 1, complaints
    assert f'{missing} is missing; the demo needs pip install ".[demo]"' in complaints
    assert printed.startswith("demo ")  # before what takes its time is imported


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_control_c_ends_a_run_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    directory = tmp_path / "made once the options are read"
    process = subprocess.Popen(
        [*DEMO, "--steps", "1000000", "--output", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # A parent in the background hands down an ignored SIGINT, which Python would leave ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        waited_from = time.monotonic()
        while not directory.exists() and process.poll() is None and time.monotonic() < waited_from + 120:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    # A shell shows 130 for both; Python ends by the signal itself where it came within code run by an extension.
    assert process.returncode in (130, -signal.SIGINT), complaint
    assert complaint.splitlines() == ["interrupted"]
    assert not list(directory.iterdir())
