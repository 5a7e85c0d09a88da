"""The official SQL-on-FHIR v2 suite (FHIR/sql-on-fhir-v2, commit 49fc1ad; `cases/`, MIT, see LICENSE.md), every case."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmo_fhir.engine import Engine
from crmo_fhir.errors import CrmoFhirError
from crmo_fhir.mapping.view import compile_view, run_view

SUITES = sorted((Path(__file__).parent / "cases").glob("*.json"))
NOT_YET: dict[str, str] = {}
"""suite/title of a case that does not pass yet: why. None is left; a case that passes may not stand here."""


def cases() -> Iterator[object]:
    for path in SUITES:
        suite = json.loads(path.read_text(encoding="utf-8"))
        for case in suite["tests"]:
            name = f"{path.stem}/{case['title']}"
            marks = [pytest.mark.xfail(strict=True, reason=NOT_YET[name])] if name in NOT_YET else []
            yield pytest.param(suite["resources"], case, id=name, marks=marks)


def test_the_whole_suite_is_here() -> None:
    assert len(SUITES) == 22
    assert len(list(cases())) == 134


@pytest.mark.parametrize(("resources", "case"), list(cases()))
def test_case(resources: list[dict], case: dict, any_engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "resources.ndjson"
    wanted = case["view"].get("resource")  # a landed file holds one type
    lines = (json.dumps(resource) for resource in resources if resource["resourceType"] == wanted)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if case.get("expectError"):
        with pytest.raises(CrmoFhirError, match=r"^(?!Spark could not)"):
            run_view(any_engine, compile_view(case["view"]), [(file, None)])
        return
    frame = run_view(any_engine, compile_view(case["view"]), [(file, None)])
    rows = frame.to_dict("records")
    if "expectCount" in case:
        assert len(rows) == case["expectCount"]
    if "expectColumns" in case:
        assert list(frame.columns) == case["expectColumns"]
    if "expect" in case:
        assert ordered(rows) == ordered(case["expect"])


def ordered(rows: list[dict]) -> list[list[tuple[str, object]]]:
    """Rows compare as a bag; 5 and 5.0 are one number."""
    return sorted((sorted(row.items()) for row in rows), key=lambda row: [(name, _text(value)) for name, value in row])


def _text(value: object) -> str:
    return str(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
