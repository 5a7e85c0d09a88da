"""Every edge case of `edge_cases.csv` has a test, which has its id in its name (`test_e05_…`)."""

import ast
import csv
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def named() -> set[str]:
    """The ids in the names of all test functions."""
    functions = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_e")
    }
    return {f"E{number}" for name in functions for number in re.findall(r"_e(\d\d)(?=_)", name)}


def test_every_edge_case_has_a_test():
    with (TESTS / "spec" / "edge_cases.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert [case["id"] for case in cases] == [f"E{number:02}" for number in range(1, 54)]
    assert all(case["case"] and case["rule"] for case in cases)
    assert {case["id"] for case in cases} == named()
