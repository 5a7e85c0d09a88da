"""The table promise → tests → status, made from the tests: a test keeps promise N where its name begins `test_promise_N_`.

`pytest --promises FILE` writes the table of that run as Markdown.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"test_promise_(\d+)(?:_|\b|\[)")
LATER = dict.fromkeys((67, 68, 72, 85, 86), "of a later step")
"""Promises that are not made yet, with the reason."""


def promises() -> dict[int, str]:
    """Number and short text of every promise."""
    with (HERE / "promises.csv").open(encoding="utf-8") as rows:
        return {int(row["number"]): row["promise"] for row in csv.DictReader(rows)}


def number_of(node: str) -> int | None:
    """The promise that a test keeps, by its name."""
    found = NAME.search(node)
    return int(found[1]) if found else None


class Table:
    """Collects the outcome of each promise's tests in a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def pytest_runtest_logreport(self, report) -> None:
        number = number_of(report.nodeid.rpartition("::")[2])
        if number is None or not (report.when == "call" or report.outcome != "passed"):
            return
        test = report.nodeid.partition("[")[0]
        self.outcomes[number][test].append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The table as Markdown."""
        rows = ["| promise | what | tests | status |", "|---|---|---|---|"]
        for number, what in promises().items():
            tests = self.outcomes.get(number, {})
            names = "<br>".join(
                f"`{test.rpartition('::')[2]}`{f' ×{len(found)}' if len(found) > 1 else ''}"
                for test, found in sorted(tests.items())
            )
            found = {outcome for outcomes in tests.values() for outcome in outcomes}
            status = next((s for s in ("failed", "skipped", "passed") if s in found), LATER.get(number, "no test"))
            rows.append(f"| {number} | {what} | {names} | {status} |")
        return "\n".join(rows) + "\n"
