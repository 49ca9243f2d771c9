"""The README's picture of peak memory: what it counts, in tensors of the logits' size, and its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("liger_kernel")
pytest.importorskip("trl.experimental.gkd.gkd_trainer")

from perf import peak_memory

pytestmark = pytest.mark.interpreter_only

V = 1024
TENSORS = {
    peak_memory.TRL: 7,
    peak_memory.TORCH: 5,
    peak_memory.LIGER: 5,
    peak_memory.OURS: 1,
    peak_memory.IN_PLACE: 0,
}


@pytest.mark.parametrize("name", TENSORS)
def test_the_peak_is_of_so_many_tensors_of_the_logits_size(name: str) -> None:
    loss = peak_memory.losses()[name]
    peak_memory.peak_gib(loss, 64)  # the first call of Liger's logs an error, whose frames hold its tensors
    peak = peak_memory.peak_gib(loss, V) * 2**30
    whole = peak_memory.N * V * 2
    assert peak // whole == TENSORS[name]
    assert peak % whole < 0.1 * whole  # statistics of rows, which V does not multiply


def test_the_readme_has_the_numbers_of_the_picture() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text().partition("](perf/results/peak_memory.png)")[0]
    whole = peak_memory.N * 128_256 * 2 / 2**30
    words = text.replace("\n", " ")
    for name, tensors in {"TRL": 7, "Liger": 5, "lucid.torch": 1}.items():
        assert f"{name} {tensors * whole:.1f}" in words


def test_a_gpu_measured_what_is_counted() -> None:
    """The larger of forward and backward; for both, what was kept from one to the other is less."""
    for name in (peak_memory.TORCH, peak_memory.LIGER, peak_memory.OURS):
        for v, peak in peak_memory.measured()[name].items():
            whole = peak_memory.N * v * 2 / 2**30
            assert peak == pytest.approx(TENSORS[name] * whole, rel=0.01)


def test_help_counts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["peak_memory", "--help"])
    monkeypatch.setattr(peak_memory, "losses", lambda: pytest.fail("counted"))
    with pytest.raises(SystemExit, match="0"):
        peak_memory.main()
    assert "--output FILE" in capsys.readouterr().out
