"""The page of all nets against the code."""

from __future__ import annotations

import re

import pytest

from nets_table import CLASSES, COLUMNS, PAGE, Row, products, renewed, rows
from striate.nets.cost import cost
from striate.nets.net import NETS, skeleton

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = list(rows(TEXT))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.cells[0]} {row.cells[4]}")
def test_the_figures_are_those_of_the_code(row: Row):
    assert row.cells[5:7] == row.figures(), "run: python tests/nets_table.py"


@pytest.mark.parametrize("name", ["lenet1989", "lenet5_1998", "alexnet", "nin", "googlenet", "plain20"])
def test_both_counters_agree(name: str):
    """Products by modules, as on the page, and by operators."""
    net = skeleton(name, 10)
    assert products(net) == cost(net).macs


def test_rows_are_complete():
    for row in ROWS:
        assert len(row.cells) == len(COLUMNS)
        assert row.cells[3] in CLASSES
        assert re.fullmatch(r"(19|20)\d\d", row.cells[2])


def test_every_net_has_its_row():
    named = {row.name for row in ROWS}
    assert named == set(NETS.names())
    keys = [(row.cells[0], row.cells[4]) for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_errors_are_in_per_cent():
    for row in ROWS:
        assert re.fullmatch(r"—|\d+(\.\d+)?( / \d+(\.\d+)?)?( \([^|]+\))?", row.cells[7]), row.cells
        figures = [float(n) for n in re.findall(r"\d+\.\d+", row.cells[7])]
        assert all(0 < n < 50 for n in figures)


def test_renewing_changes_the_figures_only():
    line = next(line for line in TEXT.splitlines() if line.startswith("| `lenet5` |"))
    spoiled = re.sub(r"[\d,]+ \| [\d,]+ \| ([^|]+) \|$", r"1 | 2 | \1 |", line)
    assert spoiled != line
    assert renewed(f"a\n{spoiled}\nb\n") == f"a\n{line}\nb\n"
