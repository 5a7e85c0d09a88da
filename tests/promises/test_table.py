"""Every promise of this step has a test that names it."""

from pathlib import Path

from promises.table import LATER, number_of, promises

TESTS = Path(__file__).resolve().parents[1]


def test_every_promise_has_a_test():
    kept = {
        number_of(line.removeprefix("def "))
        for path in TESTS.rglob("test_*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def test_promise_")
    }
    assert sorted(set(promises()) - set(LATER) - kept) == []
    assert kept <= set(promises())
