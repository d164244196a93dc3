# SPDX-License-Identifier: Apache-2.0
"""The matrix is whole: each cell has one rule, each rule a cell, and docs/failure-model.md says the same."""

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cells  # noqa: E402
import rules  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("FERRY_BUILD") or ROOT / "build").resolve()


@pytest.fixture(scope="module")
def table():
    return cells.list_points(BUILD / "ferryd-faults")


def test_each_cell_has_one_rule(table):
    used = set()
    for cell in cells.generate(table):
        if not cell.nonsense:
            used.add(rules.rule_for(cell).name)
    assert used == {rule.name for rule in rules.RULES}


def test_names_are_unique(table):
    names = [cell.name for cell in cells.generate(table)]
    assert len(names) == len(set(names))
    assert len({rule.name for rule in rules.RULES}) == len(rules.RULES)


def test_selections(table):
    every = cells.generate(table)
    assert len(cells.choose(every, "few")) >= 12
    assert sum(not cell.nonsense for cell in cells.choose(every, "daemons")) >= 120


def test_a_point_that_nobody_knows_is_an_error(table):
    with pytest.raises(KeyError):
        cells.generate([*table, ("before-lunch", "source", "STEP")])


def test_the_document_has_the_same_rules():
    text = (ROOT / "docs/failure-model.md").read_text()
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert documented == {rule.name for rule in rules.RULES}
    assert rules.markdown() in text, "tests/fault/matrix --rules prints the table as it must be"


def test_the_document_names_tests_that_exist():
    text = (ROOT / "docs/failure-model.md").read_text()
    last = None
    for name, test in re.findall(r"`(?:([a-z_/]+\.(?:py|c))|…)(?:::(\w+))?`", text):
        last = name or last
        places = [ROOT / "tests/system" / last, ROOT / last, ROOT / "tests/fault" / last]
        found = [place for place in places if place.exists()]
        assert found, last
        begins = "static void" if last.endswith(".c") else "def"
        assert not test or f"{begins} {test}(" in found[0].read_text(), f"{last}::{test}"
