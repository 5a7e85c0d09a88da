"""The command line: one command per arrow of the design; the only module that prints or exits."""

import gc
import os
import sys
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from crmo_fhir import __version__, pipeline
from crmo_fhir.errors import CrmoFhirError, UsageError
from crmo_fhir.fhir.dates import parse_date
from crmo_fhir.model.parameters import Parameters

GROUPS = (
    ("nsaid-clinical", "NSAID, sufficient clinical effect"),
    ("mtx-clinical", "Methotrexate, sufficient clinical effect"),
    ("tnfi-clinical", "TNF-α inhibitors, sufficient clinical effect"),
    ("mtx-mri", "Methotrexate, regression on MRI"),
    ("tnfi-mri", "TNF-α inhibitors, regression on MRI"),
)


def main() -> NoReturn:
    """Run the program; every error of the tree ends as one line on stderr and its exit code."""
    gc.set_threshold(100_000)  # a short-lived program: query building makes many objects, few of them in cycles
    try:
        cli.main(prog_name="crmo-fhir", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), UsageError.exit_code)
    except click.Abort:
        _fail("interrupted; run the same command again", 130)
    except CrmoFhirError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(
            f"{error.filename or 'file'}: {error.strerror or 'cannot be read or written'}; check the path",
            UsageError.exit_code,
        )
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"crmo-fhir: {_one_line(message)}", err=True)
    sys.exit(code)


def _one_line(text: str) -> str:
    """No control characters, no line breaks: nothing a server or file name says can forge a line or move a cursor."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _tell(message: str) -> None:
    click.echo(f"crmo-fhir: warning: {_one_line(message)}", err=True)


def _config() -> dict[str, Any]:
    named = os.environ.get("CRMO_FHIR_CONFIG")
    path = Path(named or "crmo-fhir.toml")
    if not path.is_file():
        if named:
            raise UsageError(f"{path}: no such configuration file; correct CRMO_FHIR_CONFIG")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML; correct it") from error


def _day(option: str, text: str | None, end: str) -> date | None:
    if text is None:
        return None
    day = parse_date(text, ZoneInfo("UTC"))
    if day is None:
        raise UsageError(f"{option}: give a year or a FHIR date (2002, 2002-01 or 2002-01-31)")
    return day.low if end == "low" else day.high


def _parameters(options: dict[str, Any]) -> Parameters:
    """The parameters of a study: defaults, then the table [parameters] of the configuration, then the options."""
    table = _config().get("parameters", {})
    known = set(Parameters.__dataclass_fields__) - {"since", "until", "data_lock"}
    if unknown := sorted(set(table) - known):
        raise UsageError(f"crmo-fhir.toml: [parameters] has no '{unknown[0]}'; see the README for the names")
    defaults = Parameters()
    for name, value in table.items():
        if type(value) is not type(getattr(defaults, name)) or (isinstance(value, int) and value < 0):
            raise UsageError(f"crmo-fhir.toml: [parameters] {name} has not the kind of value it needs; see its default")
    since = _day("--since", options["since"], "low")
    until = _day("--until", options["until"], "high")
    if since and until and until < since:
        raise UsageError("--until lies before --since: no date of diagnosis can be in that window; exchange them")
    given = {
        "max_age_years": options["max_age"],
        "time_zone": options["time_zone"],
        "interval": options["interval"],
        "text_diagnosis": options["text_diagnosis"] or None,
    }
    values = {**table, **{name: value for name, value in given.items() if value is not None}}
    try:
        parameters = Parameters(
            since=since, until=until, data_lock=_day("--data-lock", options["data_lock"], "high"), **values
        )
        ZoneInfo(parameters.time_zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError) as error:
        raise UsageError("--time-zone: no such time zone; use a name such as Europe/Copenhagen") from error
    return parameters


def _server(options: dict[str, Any]) -> pipeline.Server:
    return pipeline.Server(
        token=os.environ.get("CRMO_FHIR_TOKEN") or None,
        retry_budget=options["retry_budget"],
        ca_file=options["ca_file"],
    )


def _source(source: str | None) -> str:
    found = source or os.environ.get("CRMO_FHIR_SERVER") or _config().get("server")
    if not found:
        raise UsageError("no SOURCE: name a FHIR base URL, a folder or a file, or set CRMO_FHIR_SERVER")
    return str(found)


def _extract_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--since", metavar="DATE", help="First date of diagnosis: a year or a FHIR date (2002, 2002-01)."),
        click.option("--until", metavar="DATE", help="Last date of diagnosis, included."),
        click.option(
            "--max-age", type=click.IntRange(1, 120), help="Under this age at diagnosis (default 16, strict)."
        ),
        click.option(
            "--text-diagnosis", is_flag=True, help="Let children in whose diagnosis stands in free text only."
        ),
        click.option("--data-lock", metavar="DATE", help="Last day of data (default: the last date in the data)."),
        click.option("--time-zone", metavar="NAME", help="Time zone of the study (default Europe/Copenhagen)."),
        click.option(
            "--interval", type=click.Choice(["wilson", "clopper-pearson"]), help="Confidence interval (default wilson)."
        ),
        click.option(
            "--mappings",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="A site's own codes, laid over ours.",
        ),
        click.option(
            "--retry-budget",
            type=click.FloatRange(0),
            default=120.0,
            show_default=True,
            envvar="CRMO_FHIR_RETRY_BUDGET",
            help="Seconds of waiting on a failing server, in all.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Certificates of the hospital's own authority.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_study_option = click.option(
    "-o",
    "--study",
    "study",
    type=click.Path(path_type=Path),
    default=Path("study"),
    show_default=True,
    help="Folder of the study.",
)
_quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
_published = click.option(
    "--published",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CSV of figures printed elsewhere, to set beside ours.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    r"""From FHIR records to the treatment-effect table of a CRMO/CNO cohort, and back as a MeasureReport.

    \b
    Try it:       crmo-fhir demo
    Use it:       crmo-fhir extract https://fhir.hospital.example/r4 --since 2002 -o study
                  crmo-fhir measure study
    """


@cli.command()
@click.option(
    "-o",
    "--study",
    "study",
    type=click.Path(path_type=Path),
    default=Path("crmo-demo"),
    show_default=True,
    help="Folder of the study.",
)
@_quiet
def demo(study: Path, quiet: bool) -> None:
    """The whole way on the bundled cohort, without a network."""
    measured = pipeline.demo(study, tell=_teller(quiet))
    _show(measured, study, quiet=quiet)


@cli.command()
@click.argument("source", required=False)
@_extract_options
@_study_option
@_quiet
def extract(source: str | None, study: Path, quiet: bool, **options: Any) -> None:
    """Pull every child with CRMO from SOURCE and build the cohort.

    SOURCE is a FHIR base URL, a folder (NDJSON, Bundles, single resources, in any mix) or one file; without it the
    server of CRMO_FHIR_SERVER or crmo-fhir.toml.
    """
    parameters = _parameters(options)
    pipeline.extract(
        _source(source), study, parameters, mappings=options["mappings"], server=_server(options), tell=_teller(quiet)
    )
    if not quiet:
        click.echo(f"cohort built in {study}; next: crmo-fhir measure {study}")


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--mappings",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The mappings it was extracted with.",
)
@_quiet
def build(study: Path, mappings: Path | None, quiet: bool) -> None:
    """Build the cohort of STUDY again from its landed records."""
    pipeline.build(study, mappings=mappings, tell=_teller(quiet))
    if not quiet:
        click.echo(f"cohort built in {study}; next: crmo-fhir measure {study}")


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--mappings",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A site's own codes, laid over ours.",
)
@_published
@_quiet
def measure(study: Path, mappings: Path | None, published: Path | None, quiet: bool) -> None:
    """Compute the figures of STUDY: results.csv, table1.csv, measure-report.json and report.html."""
    measured = pipeline.measure(study, mappings=mappings, published=published, reporter=_config().get("reporter"))
    _show(measured, study, quiet=quiet)


@cli.command()
@click.argument("source", required=False)
@_extract_options
@_study_option
@_published
@_quiet
def run(source: str | None, study: Path, published: Path | None, quiet: bool, **options: Any) -> None:
    """Extract and measure in one go."""
    parameters = _parameters(options)
    pipeline.extract(
        _source(source), study, parameters, mappings=options["mappings"], server=_server(options), tell=_teller(quiet)
    )
    measured = pipeline.measure(
        study, mappings=options["mappings"], published=published, reporter=_config().get("reporter")
    )
    _show(measured, study, quiet=quiet)


def _teller(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else _tell


def _show(measured: pipeline.Measured, study: Path, *, quiet: bool) -> None:
    """The table on the screen: each treatment group on one line."""
    if quiet:
        return
    from crmo_fhir.export.table1 import round_half_away

    overall = {r.group: r for r in measured.results if not r.stratifier}
    window = f"diagnosed {measured.study.start} to {measured.study.end}"
    click.echo(f"{overall['cohort'].N} children with CRMO, {window}\n")
    click.echo(f"{'group':<16}{'':<46}{'n/N':>8}{'%':>6}   95 % interval   counted")
    for group, label in GROUPS:
        r = overall[group]
        if r.proportion is None or r.ci_low is None or r.ci_high is None:
            figures = f"{'-':>6}   {'-':<13}"
        else:
            low, high = (round_half_away(100 * limit, 1) for limit in (r.ci_low, r.ci_high))
            figures = f"{round_half_away(100 * r.proportion, 0):>6}   {low + '–' + high:<13}"
        click.echo(f"{group:<16}{label:<46}{f'{r.n}/{r.N}':>8}{figures}   {r.unit}s")
    click.echo(f"\nresults.csv, table1.csv, measure-report.json and report.html are in {study}")
