"""What the commands of the examples have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Main = Callable[[Any], int]


def assert_refused(main: Main, capsys: pytest.CaptureFixture[str], complaint: str, *arguments: str) -> None:
    """The command ends with status 2 and one line on stderr that has the complaint."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed, complaints = capsys.readouterr()
    assert stop.value.code == 2
    assert len(complaints.splitlines()) == 1, complaints
    assert complaint in complaints
    assert printed == ""
