"""What happens, as a sentence: the only module where the rooms meet.

Rooms are imported where they are used, so that `--help` costs nothing.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from crmo_fhir import __version__
from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.model.parameters import Parameters

if TYPE_CHECKING:
    import pandas as pd

    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.model.records import Pull
    from crmo_fhir.model.results import Result
    from crmo_fhir.model.study import Study

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach a FHIR server; the token comes from the environment only."""

    token: str | None = None
    retry_budget: float = 120.0
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a study, for the terminal."""

    results: "list[Result]"
    study: "Study"


def extract(
    source: str,
    study: Path,
    parameters: Parameters,
    *,
    mappings: Path | None = None,
    server: Server | None = None,
    tell: Tell = lambda _: None,
) -> None:
    """SOURCE → STUDY/raw → STUDY/cohort.

    `source` is a FHIR base URL, a folder or a file. Raises an error of `errors` where anything that could matter was
    not read; then no figure is left that could pass for a whole one.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts

    artifacts = Artifacts.load(mappings)
    is_server = source.startswith(("http://", "https://"))
    name = source.rstrip("/") if is_server else str(Path(source).resolve())
    request = {"source": name, "mappings": artifacts.digest, **_plain(parameters)}
    if not is_server and not Path(source).exists():
        raise UsageError(f"{source}: no such file or folder; name a FHIR base URL, a folder or a file")
    if study.exists():
        landing.refuse_foreign(study, request)
    pull = _pull(source, artifacts, server or Server() if is_server else None, need_text=parameters.text_diagnosis)
    pull.source = name
    for warning in pull.warnings:
        tell(warning)
    with landing.hold(study, create=True):
        landing.refuse_foreign(study, request)
        landing.land(study, pull, request, datetime.now(UTC).date().isoformat(), _misfit)
        _build(study, artifacts, tell)


def _pull(source: str, artifacts: "Artifacts", server: Server | None, *, need_text: bool) -> "Pull":
    crmo, text = artifacts.value_set("crmo"), artifacts.value_set("crmo-text")
    if server is not None:
        from crmo_fhir.fhir.client import FhirClient
        from crmo_fhir.source.crawl import crawl

        client = FhirClient(source, token=server.token, retry_budget=server.retry_budget, ca_file=server.ca_file)
        return crawl(client, crmo, text, need_text=need_text)
    from crmo_fhir.source.files import select_candidates

    return select_candidates(Path(source), crmo, text)


def _misfit(record: Any) -> str | None:
    import msgspec

    from crmo_fhir.mapping.schema import find_misfit

    path = find_misfit(msgspec.json.decode(record.text), record.type)
    return None if path is None else f"{path} has not the shape FHIR gives it"


def build(study: Path, *, mappings: Path | None = None, tell: Tell = lambda _: None) -> None:
    """STUDY/raw → STUDY/cohort, with the arguments the study was extracted with."""
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts

    with landing.hold(study):
        _build(study, Artifacts.load(mappings), tell)


def _build(study: Path, artifacts: "Artifacts", tell: Tell) -> None:
    from crmo_fhir import landing
    from crmo_fhir.cohort import derive_cohort
    from crmo_fhir.engine import open_engine
    from crmo_fhir.mapping.facts import read_facts
    from crmo_fhir.model.tables import COHORT

    raw = landing.open_raw(study)
    request = raw.manifest["request"]
    if request["mappings"] != artifacts.digest:
        raise UsageError(
            f"{study}: extracted with other mappings; give the same --mappings, or extract into a new folder"
        )
    parameters = _parameters(request)
    with open_engine() as engine:
        facts, type_counts = read_facts(engine, artifacts, raw.files, raw.aliases, ZoneInfo(parameters.time_zone))
    cohort = derive_cohort(
        facts,
        type_counts,
        raw.manifest["source"]["records"],
        parameters,
        date.fromisoformat(raw.manifest["extracted"]),
    )
    files = {f"{name}.parquet": table.to_parquet(cohort.tables[name]) for name, table in COHORT.items()}
    files["attrition.csv"] = _csv(cohort.tables["attrition"])
    files["unmapped.csv"] = _csv(facts["unmapped"][["system", "code", "display", "resource_type", "count"]])
    record = {
        "raw": raw.sha256,
        "program": __version__,
        "data_lock": cohort.data_lock.isoformat() if cohort.data_lock else None,
        "orders_count": cohort.orders_count,
    }
    landing.write_cohort(study, files, record)
    if len(cohort.tables["patients"]) == 0:
        tell("no child meets the criteria: the cohort is empty; attrition.csv shows where the candidates were left")
    unresolved = (
        facts["listed"]["reason"].str.contains("subject|patient", regex=True).sum() if len(facts["listed"]) else 0
    )
    if unresolved:
        tell(f"{unresolved} records name no Patient that is here; attrition.csv lists them by type")


def measure(
    study: Path, *, mappings: Path | None = None, published: Path | None = None, reporter: str | None = None
) -> Measured:
    """STUDY/cohort → results.csv, table1.csv, measure.json, library.json, measure-report.json and report.html.

    `published` is a CSV of figures printed elsewhere, set beside ours in table1.csv and the report.
    """
    from crmo_fhir import landing
    from crmo_fhir.artifacts import Artifacts
    from crmo_fhir.export.measure_report import build_measure_report, library_json, measure_json, to_json
    from crmo_fhir.export.report import report_html
    from crmo_fhir.export.results import results_csv
    from crmo_fhir.export.table1 import table1_csv
    from crmo_fhir.metrics import compute_results
    from crmo_fhir.model.tables import COHORT

    with landing.hold(study):
        raw = landing.open_raw(study)
        built = landing.open_cohort(study, raw)
        artifacts = Artifacts.load(mappings)
        parameters = _parameters(raw.manifest["request"])
        folder = study / "cohort"
        tables = {name: table.from_parquet((folder / f"{name}.parquet").read_bytes()) for name, table in COHORT.items()}
        results = compute_results(tables, parameters)
        known = _study(raw.manifest, built, tables["patients"], parameters, folder, reporter)
        printed = _read_csv(published.read_text(encoding="utf-8")) if published else None
        outputs = {
            "results.csv": results_csv(results),
            "table1.csv": table1_csv(results, printed),
            "measure.json": measure_json(artifacts.measure()),
            "library.json": library_json(artifacts.library()),
            "measure-report.json": to_json(build_measure_report(results, known, artifacts.measure())),
            "report.html": report_html(results, known, printed),
        }
        landing.write_outputs(study, outputs)
    return Measured(results, known)


def demo(study: Path, *, tell: Tell = lambda _: None) -> Measured:
    """The whole way on the bundled cohort, without a network; the printed figures travel with it."""
    fixtures = demonstration()
    window = json.loads((fixtures / "published" / "window.json").read_text(encoding="utf-8"))
    extract(str(fixtures / "demonstration"), study, _parameters(window), tell=tell)
    return measure(study, published=fixtures / "published" / "printed.csv")


def demonstration() -> Path:
    """The folder of the bundled records and of the figures printed for them: in the package, else in the checkout."""
    packaged = Path(str(package_files("crmo_fhir"))) / "fixtures"
    checkout = Path(__file__).resolve().parents[2] / "fixtures"
    for folder in (packaged, checkout):
        if (folder / "demonstration").is_dir():
            return folder
    raise IncompleteError(f"{packaged}: the demonstration is missing from this installation; install crmo-fhir again")


def _study(
    manifest: Mapping[str, Any],
    built: Mapping[str, Any],
    patients: "pd.DataFrame",
    parameters: Parameters,
    folder: Path,
    reporter: str | None,
) -> "Study":
    from crmo_fhir.model.study import Study

    data_lock = date.fromisoformat(built["data_lock"]) if built["data_lock"] else None
    first = min(patients["diagnosis_low"], default=None)
    attrition = _read_csv((folder / "attrition.csv").read_text(encoding="utf-8"))
    ledger = _read_csv((folder.parent / "raw" / "ledger.csv").read_text(encoding="utf-8"))
    end = parameters.until or data_lock or parameters.since or date(1970, 1, 1)  # no record has a date: an empty cohort
    return Study(
        parameters=parameters,
        start=parameters.since or first or min(end, data_lock or end),
        end=end,
        data_lock=data_lock,
        complete=True,
        reporter=reporter or "Reporting hospital (not named)",
        program_version=__version__,
        source_kind="FHIR server" if manifest["source"]["server"] else "FHIR export (folder)",
        attrition=tuple({**row, "kept": int(row["kept"]), "dropped": int(row["dropped"])} for row in attrition),
        unmapped=tuple(_read_csv((folder / "unmapped.csv").read_text(encoding="utf-8"))),
        ledger=dict(sorted(Counter(row["state"] for row in ledger).items())),
        warnings=tuple(manifest["warnings"]),
    )


def _plain(parameters: Parameters) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, date) else v for k, v in asdict(parameters).items()}


def _parameters(plain: Mapping[str, Any]) -> Parameters:
    days = {"since", "until", "data_lock"}
    names = Parameters.__dataclass_fields__
    given: dict[str, Any] = {k: date.fromisoformat(v) if k in days and v else v for k, v in plain.items() if k in names}
    return Parameters(**given)


def _csv(frame: "pd.DataFrame") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    for row in frame.itertuples(index=False):
        writer.writerow(["" if value is None else _cell(value) for value in row])
    return text.getvalue().encode("utf-8")


def _cell(value: object) -> object:
    """A text cell that a spreadsheet could run as a formula is defused (OWASP CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\0") else value


def _read_csv(text: str) -> Sequence[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
