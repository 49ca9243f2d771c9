"""Faults that `make mutants` plants: each can be planted, and leaves a file that Python can read."""

from __future__ import annotations

import ast
import csv

import pytest

from tests.mutants.__main__ import COLUMNS, RESULTS
from tests.mutants.faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_in_one_place_and_is_other_code(fault: Fault) -> None:
    assert fault.error() is None
    sound = (ROOT / fault.file).read_text()
    assert ast.dump(ast.parse(fault.planted(sound))) != ast.dump(ast.parse(sound))


def test_each_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_committed_table_has_every_fault() -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == set(COLUMNS)
    assert {row["fault"]: row["file"] for row in rows} == {fault.name: fault.file for fault in FAULTS}
