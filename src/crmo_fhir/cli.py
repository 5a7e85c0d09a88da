"""The command line: one command per arrow of the design; the only module that prints or exits."""

import gc
import os
import re
import resource
import signal
import sys
import threading
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from crmo_fhir import __version__, pipeline
from crmo_fhir.errors import DISK_FAILURES, CrmoFhirError, IncompleteError, IntegrityError, UsageError
from crmo_fhir.fhir.dates import parse_date
from crmo_fhir.model.parameters import CHOICES, Parameters
from crmo_fhir.model.records import WHOLE
from crmo_fhir.model.study import Disclosure

if TYPE_CHECKING:
    from crmo_fhir.source.probe import Finding

Command = Callable[..., None]
Option = Callable[[Command], Command]

GROUPS = (
    ("nsaid-clinical", "NSAID, sufficient clinical effect"),
    ("mtx-clinical", "Methotrexate, sufficient clinical effect"),
    ("tnfi-clinical", "TNF-α inhibitors, sufficient clinical effect"),
    ("mtx-mri", "Methotrexate, regression on MRI"),
    ("tnfi-mri", "TNF-α inhibitors, regression on MRI"),
)
MOST_OF_A_THRESHOLD = 10_000
"""No number of days, months, percent or samples is more; dates could not hold it."""
SECONDS_OF_CLEARING = 2.0
"""So long an interrupt may take to clear away what is half-written, before it is taken for lost."""


def main() -> NoReturn:
    """Run the program; every error of the tree ends as one line on stderr and its exit code."""
    os.umask(0o077)  # whatever it makes, the folders around a study too, is its user's alone
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # nor is its memory kept
    gc.set_threshold(100_000)  # a short-lived program: query building makes many objects, few of them in cycles
    with _signals() as received:
        try:
            cli.main(prog_name="crmo-fhir", standalone_mode=False)
        except Exception as error:  # noqa: BLE001 - nothing ends in a traceback
            if received or isinstance(error, click.Abort):
                _stop(received)  # whatever the interrupt set off: DuckDB makes an error of its own of it
            _fail(*_said(error))
    sys.exit(0)


def _said(error: Exception) -> tuple[str, int]:
    """The one line and the exit code of an error.

    Of one that no user should meet it tells kind and places alone: its text may hold a value of a record, or a secret.
    """
    match error:
        case click.ClickException():
            return error.format_message(), UsageError.exit_code
        case CrmoFhirError():
            return str(error), error.exit_code
        case OSError():
            kind = IntegrityError if error.errno in DISK_FAILURES else UsageError
            what = "free space or mend the disk" if kind is IntegrityError else "check the path"
            where = error.filename or "standard output or a file"
            return f"{where}: {error.strerror or 'cannot be read or written'}; {what}", kind.exit_code
    steps = [(Path(frame.f_code.co_filename).name, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = " < ".join(f"{name}:{line}" for name, line in reversed(steps[-8:]))
    fault = f"{type(error).__name__} at {places}"
    return f"a fault of the program ({fault}); report it with this line", CrmoFhirError.exit_code


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into a KeyboardInterrupt, so that what is half-written is cleared away on both.

    Where it is lost (a callback cannot raise; libraries in C drop what is raised while they look for an optional part), it
    is raised again. Where a library in C does not come back to Python, a thread ends the program.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGALRM or not received:
            received.append(number)
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_CLEARING)
            raise KeyboardInterrupt

    def lost(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt and received:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            lost_before(unraisable)

    def watch() -> None:
        if number := os.read(ear, 1):
            time.sleep(2 * SECONDS_OF_CLEARING)
            _stop([*number])
        os.close(ear)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    ear_before = signal.set_wakeup_fd(mouth)
    threading.Thread(target=watch, daemon=True).start()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    lost_before, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(ear_before)
        os.close(mouth)
        sys.unraisablehook = lost_before
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(received: list[int]) -> NoReturn:
    """End at once: workers may be waiting for a server, and what they still do is of no use.

    Not by sys.exit: Python would wait for them, or give a code of its own where the interrupt came during an import.
    """
    click.echo("crmo-fhir: interrupted; run the same command again, it goes on where it was", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + (received[0] if received else signal.SIGINT))


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"crmo-fhir: {_one_line(message)}", err=True)
    sys.exit(code)


def _one_line(text: str) -> str:
    """No control characters, no line breaks: nothing a server or file name says can forge a line or move a cursor."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


class _Screen:
    """What a run says while it works: warnings on stderr; notes, and on a terminal a bar per type, on stdout; -q: nothing.

    Without a terminal the progress is a plain line now and then. Nothing of a patient is in any of it.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, *, quiet: bool) -> None:
        """Begin; `quiet` silences everything."""
        self._quiet = quiet
        self._terminal = sys.stdout.isatty() and not quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, float] = {}
        self._said = time.monotonic()

    def warn(self, message: str) -> None:
        """A warning: one line on stderr."""
        if not self._quiet:
            click.echo(f"crmo-fhir: warning: {_one_line(message)}", err=True)

    def note(self, message: str) -> None:
        """What a user may like to know: one line on stdout."""
        if self._quiet:
            return
        if self._bars is not None:
            self._bars.console.print(_one_line(message), markup=False, highlight=False)
        else:
            click.echo(_one_line(message))

    def log(self, message: str) -> None:
        """A line of -v on stderr."""
        click.echo(f"crmo-fhir: {_one_line(message)}", err=True)

    def progress(self, kind: str, done: int, total: int | None) -> None:
        """So many records of a type have come, of so many where that is known."""
        if self._quiet:
            return
        now = time.monotonic()
        begun = self._begun.setdefault(kind, now)
        if self._terminal:
            self._show(kind, done, total)
        elif now - self._said >= self.SECONDS_BETWEEN_LINES:
            self._said = now
            of = f" of {total}" if total is not None else ""
            click.echo(f"{kind}: {done}{of} records, {done / max(now - begun, 0.1):.0f}/s")

    def _show(self, kind: str, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self._bars is None:
            texts = (TextColumn("{task.fields[count]:>16}"), TextColumn("{task.fields[rate]:>10}"))
            self._bars = Progress(TextColumn("{task.description:<25}"), BarColumn(), *texts, TimeElapsedColumn())
            self._bars.start()
        if kind not in self._tasks:
            self._tasks[kind] = self._bars.add_task(kind, total=None, count="", rate="")
        seconds = max(time.monotonic() - self._begun[kind], 0.1)
        count = f"{done} of {total}" if total not in (None, done) else f"{done}"
        # A type without a record is done too, and a bar of nothing would never be full.
        total, shown = (1, 1) if total == done == 0 else (total, done)
        self._bars.update(self._tasks[kind], completed=shown, total=total, count=count, rate=f"{done / seconds:.0f}/s")

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @property
    def voice(self) -> pipeline.Voice:
        """Itself, as the pipeline speaks through it."""
        return pipeline.Voice(warn=self.warn, note=self.note, progress=self.progress)


@contextmanager
def _screen(*, quiet: bool) -> Iterator[_Screen]:
    screen = _Screen(quiet=quiet)
    try:
        yield screen
    finally:
        screen.end()


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
    if not isinstance(table, dict):
        raise UsageError("crmo-fhir.toml: parameters is a table, [parameters]; correct it")
    known = set(Parameters.__dataclass_fields__) - {"since", "until", "data_lock"}
    if unknown := sorted(set(table) - known):
        raise UsageError(f"crmo-fhir.toml: [parameters] has no '{unknown[0]}'; see the README for the names")
    defaults = Parameters()
    for name, value in table.items():
        if type(value) is not type(getattr(defaults, name)) or (isinstance(value, int) and value < 0):
            raise UsageError(f"crmo-fhir.toml: [parameters] {name} has not the kind of value it needs; see its default")
        if isinstance(value, int) and value > MOST_OF_A_THRESHOLD:
            raise UsageError(f"crmo-fhir.toml: [parameters] {name} may be {MOST_OF_A_THRESHOLD} at most")
        if isinstance(value, dict) and not all(
            type(v) in (int, float) and 0 <= v <= MOST_OF_A_THRESHOLD for v in value.values()
        ):
            raise UsageError(
                f"crmo-fhir.toml: [parameters] {name} holds numbers that are not below 0, each by its name"
            )
        if name == "pedcno_zero_steps" and (strange := sorted(set(value) - set(defaults.pedcno_zero_steps))):
            items = ", ".join(defaults.pedcno_zero_steps)
            raise UsageError(f"crmo-fhir.toml: [parameters] {name} knows no '{strange[0]}'; its items are {items}")
        if name in CHOICES and value not in CHOICES[name]:
            allowed = ", ".join(str(choice) for choice in CHOICES[name])
            raise UsageError(f"crmo-fhir.toml: [parameters] {name} takes one of {allowed}")
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
    table = {n: {**getattr(defaults, n), **v} if isinstance(v, dict) else v for n, v in table.items()}
    values = {**table, **{name: value for name, value in given.items() if value is not None}}
    try:
        parameters = Parameters(
            since=since, until=until, data_lock=_day("--data-lock", options["data_lock"], "high"), **values
        )
        ZoneInfo(parameters.time_zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError) as error:
        raise UsageError("--time-zone: no such time zone; use a name such as Europe/Copenhagen") from error
    return parameters


def _server(options: dict[str, Any], *, log: Callable[[str], None]) -> pipeline.Server:
    """How to reach the server: options, else environment (click reads it), else crmo-fhir.toml; secrets from the environment."""
    config = _config()
    sign_in = config.get("sign_in", {})
    names = ("client_id", "key_file", "key_id", "token_url", "scope")
    if (
        not isinstance(sign_in, dict)
        or set(sign_in) - set(names)
        or not all(isinstance(value, str) for value in sign_in.values())
    ):
        raise UsageError(f"crmo-fhir.toml: [sign_in] takes {', '.join(names)}, all texts, and nothing else")
    given = {name: os.environ.get(f"CRMO_FHIR_{name.upper()}") or sign_in.get(name) or "" for name in names}
    given |= {name: str(options[name]) for name in ("client_id", "key_file") if options[name]}
    if bool(given["client_id"]) != bool(given["key_file"]):
        raise UsageError(
            "a sign-in needs both --client-id and --key-file (or CRMO_FHIR_CLIENT_ID and CRMO_FHIR_KEY_FILE)"
        )
    return pipeline.Server(
        token=os.environ.get("CRMO_FHIR_TOKEN") or "",
        basic=os.environ.get("CRMO_FHIR_BASIC") or "",
        client_id=given["client_id"],
        key_file=Path(given["key_file"]) if given["key_file"] else None,
        key_id=given["key_id"],
        key_password=os.environ.get("CRMO_FHIR_KEY_PASSWORD") or "",
        token_url=given["token_url"],
        scope=given["scope"],
        retry_budget=options["retry_budget"],
        ca_file=options["ca_file"],
        workers=options["workers"],
        allow=(*options["allow_origin"], *_listed(config, "allow")),
        absent=_listed(config, "absent"),
        log=log if options["verbose"] else lambda _: None,
    )


def _reporter() -> pipeline.Reporter:
    config = _config()
    name, reference = (config.get(key) for key in ("reporter", "reporter_reference"))
    if not isinstance(name, str | None):
        raise UsageError("crmo-fhir.toml: reporter is the name of the hospital, a text; correct it")
    if not isinstance(reference, str | None) or not re.fullmatch(
        r"Organization/[A-Za-z0-9.\-]{1,64}", reference or "Organization/-"
    ):
        raise UsageError("crmo-fhir.toml: reporter_reference is Organization/ and an id of the server; correct it")
    return pipeline.Reporter(name, reference)


def _listed(config: dict[str, Any], name: str) -> tuple[str, ...]:
    found = config.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UsageError(f"crmo-fhir.toml: {name} is a list of texts; correct it")
    return tuple(found)


def _source(source: str | None) -> str:
    found = source or os.environ.get("CRMO_FHIR_SERVER") or _config().get("server")
    if not found:
        raise UsageError("no SOURCE: name a FHIR base URL, a folder or a file, or set CRMO_FHIR_SERVER")
    return str(found)


def _with(options: Sequence[Option], command: Command) -> Command:
    """The command with these options, in this order in its help."""
    for option in reversed(options):
        command = option(command)
    return command


def _extract_options(command: Command) -> Command:
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
        _mappings,
        _engine,
        click.option(
            "--updated-since",
            metavar="last|INSTANT",
            help="Fetch only what changed since the study's last pull, or since a FHIR instant before it.",
        ),
        _accept_partial,
        _memory,
    )
    return _server_options(_with(options, command))


def _server_options(command: Command) -> Command:
    options = (
        click.option(
            "--mode",
            type=click.Choice(["auto", "search", "bulk"]),
            default="auto",
            show_default=True,
            help="Fetch by search or by a bulk export.",
        ),
        click.option("--group", metavar="ID", default="", help="Export this Group of the server (implies bulk)."),
    )
    return _reach_options(_with(options, command))


def _reach_options(command: Command) -> Command:
    options = (
        click.option("--client-id", metavar="ID", help="Sign in as this SMART backend service (CRMO_FHIR_CLIENT_ID)."),
        click.option(
            "--key-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Its private key, PEM or JWK, mode 600 (CRMO_FHIR_KEY_FILE).",
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
            "--workers",
            type=click.IntRange(1, 16),
            default=4,
            show_default=True,
            help="Most requests open at a time.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Certificates of the hospital's own authority.",
        ),
        click.option(
            "--allow-origin", metavar="URL", multiple=True, help="Another origin that the server's links may lead to."
        ),
        click.option("-v", "--verbose", count=True, help="Log each request: kind, status and time."),
    )
    return _with(options, command)


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
_mappings = click.option(
    "--mappings",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A site's own codes, laid over ours.",
)
_accept_partial = click.option(
    "--accept-partial", is_flag=True, help="Take a pull that is not whole; the figures will say so."
)
_engine = click.option(
    "--engine",
    metavar="ENGINE",
    default="duckdb",
    show_default=True,
    help="What runs the views: duckdb, spark, spark:local[2] or spark://HOST:PORT.",
)


def _checked_memory(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    del context, option
    if given is not None and not re.fullmatch(r"\d{1,6}(\.\d{1,3})? ?([KMGT]i?B|%)", given, re.ASCII):
        raise UsageError("--memory: give an amount with its unit, such as 4GB or 50%")
    return given


_memory = click.option(
    "--memory",
    metavar="AMOUNT",
    callback=_checked_memory,
    help="What the engine may take, such as 4GB (default half of the machine's); it spills the rest into STUDY.",
)
_published = click.option(
    "--published",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CSV of figures printed elsewhere, to set beside ours.",
)
_lang = click.option(
    "--lang", type=click.Choice(["en", "da"]), default="en", show_default=True, help="Language of report.html."
)


def _form_options(command: Command) -> Command:
    options = (
        click.option(
            "--fhir-version",
            type=click.Choice(["R4", "R5"], case_sensitive=False),
            default="R4",
            show_default=True,
            help="FHIR version of what is written.",
        ),
        click.option(
            "--deqm",
            type=click.Choice(["uv", "us"]),
            default="uv",
            show_default=True,
            help="DEQM profiles: universal, or of the US realm.",
        ),
        click.option("--individual", is_flag=True, help="Also a MeasureReport for each child, and the list of them."),
        _lang,
    )
    return _with(options, command)


def _form(options: dict[str, Any]) -> pipeline.Form:
    return pipeline.Form(*(options.pop(name) for name in ("fhir_version", "deqm", "individual", "lang")))


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
@_lang
@_quiet
def demo(study: Path, lang: Literal["en", "da"], quiet: bool) -> None:
    """The whole way on the bundled cohort, without a network."""
    with _screen(quiet=quiet) as screen:
        measured = pipeline.demo(study, form=pipeline.Form(lang=lang), voice=screen.voice)
    _show(measured, study, quiet=quiet)


@cli.command()
@click.argument("server", required=False)
@click.option("--server", "named", metavar="URL", help="The FHIR base URL, as SERVER.")
@_mappings
@_server_options
@_quiet
def probe(server: str | None, named: str | None, quiet: bool, **options: Any) -> None:
    """What a FHIR server offers, what a pull would cost and what would be impossible; reads no patient.

    Exit code 0 only if the pull can succeed.
    """
    with _screen(quiet=quiet) as screen:
        found = pipeline.probe(
            _source(named or server),
            mappings=options["mappings"],
            server=_server(options, log=screen.log),
            how=_how(options),
            voice=screen.voice,
        )
    if not quiet:
        _show_finding(found)
    if found.impossible:
        raise IncompleteError(f"a whole pull is not possible: {found.impossible[0]}")


def _show_finding(found: "Finding") -> None:
    click.echo(_one_line(f"{found.software}, FHIR {found.fhir_version}"))
    click.echo(f"sign-in: {found.sign_in}")
    if found.scopes:
        click.echo(f"signed in with the scopes {' '.join(found.scopes)}")
    click.echo(f"way: {found.way.mode}{f' ({found.way.level})' if found.way.level else ''}: {found.way.reason}")
    if found.candidates is not None:
        click.echo(f"diagnoses with a code of the disease: {found.candidates}")
    cost = f", {found.records} records to export" if found.records is not None else ""
    click.echo(f"cost: about {found.requests} requests{cost}" if found.requests else "cost: not known")
    click.echo("records on the server:")
    for kind, total in found.counts.items():
        click.echo(f"  {kind:<25}{'not counted' if total is None else total:>12}")
    for heading, lines in (("impossible:", found.impossible), ("not certain:", found.limits)):
        if lines:
            click.echo(heading)
        for line in lines:
            click.echo(f"  {_one_line(line)}")


@cli.command()
@click.argument("source", required=False)
@_extract_options
@_study_option
@_quiet
def extract(source: str | None, study: Path, quiet: bool, **options: Any) -> None:
    """Pull every child with CRMO from SOURCE and build the cohort.

    SOURCE is a FHIR base URL, a folder (NDJSON, Bundles, single resources, in any mix) or one file; without it the
    server of CRMO_FHIR_SERVER or crmo-fhir.toml. A run that was cut off goes on where it was when it is started again.
    """
    _extract(source, study, options, quiet=quiet)
    if not quiet:
        click.echo(f"cohort built in {study}; next: crmo-fhir measure {study}{_partial_flag(options)}")


def _extract(source: str | None, study: Path, options: dict[str, Any], *, quiet: bool) -> None:
    parameters = _parameters(options)
    with _screen(quiet=quiet) as screen:
        pipeline.extract(
            _source(source),
            study,
            parameters,
            mappings=options["mappings"],
            server=_server(options, log=screen.log),
            how=_how(options),
            engine=options["engine"],
            voice=screen.voice,
        )


def _how(options: dict[str, Any]) -> pipeline.How:
    return pipeline.How(
        mode=options["mode"],
        group=options["group"],
        updated_since=options.get("updated_since") or "",
        accept_partial=options.get("accept_partial", False),
        memory=options.get("memory"),
    )


def _partial_flag(options: dict[str, Any]) -> str:
    return " --accept-partial" if options["accept_partial"] else ""


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@_mappings
@_engine
@_accept_partial
@_memory
@_quiet
def build(
    study: Path, mappings: Path | None, engine: str, accept_partial: bool, memory: str | None, quiet: bool
) -> None:
    """Build the cohort of STUDY again from its landed records."""
    with _screen(quiet=quiet) as screen:
        pipeline.build(
            study,
            mappings=mappings,
            accept_partial=accept_partial,
            engine=engine,
            memory=memory,
            voice=screen.voice,
        )
    if not quiet:
        click.echo(f"cohort built in {study}; next: crmo-fhir measure {study}")


@cli.command()
@click.argument("view", metavar="NAME|FILE")
@click.argument("source")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Write the table, .csv or .parquet by its name.",
)
@_mappings
@_engine
@_memory
@_accept_partial
@_quiet
def view(
    view: str,
    source: str,
    out: Path,
    mappings: Path | None,
    engine: str,
    memory: str | None,
    accept_partial: bool,
    quiet: bool,
) -> None:
    """Run one ViewDefinition over SOURCE and write its rows as a table.

    It is that of a FILE, or one of ours by its NAME (mappings/views). SOURCE is a folder, a file or a study; the records of
    everybody in it are read, and the table is of single patients: it stays in the hospital.
    """
    with _screen(quiet=quiet) as screen:
        viewed = pipeline.view(
            view,
            source,
            out,
            mappings=mappings,
            accept_partial=accept_partial,
            engine=engine,
            memory=memory,
            voice=screen.voice,
        )
    of = "" if viewed.records is None else f" of {viewed.records} records"
    left = f", {viewed.left_out} left out" if viewed.left_out else ""
    _say(f"{viewed.rows} rows{of}{left} in {out}", quiet=quiet)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@_mappings
@_accept_partial
@_published
@_form_options
@_quiet
def measure(
    study: Path, mappings: Path | None, accept_partial: bool, published: Path | None, quiet: bool, **options: Any
) -> None:
    """Compute the figures of STUDY: results.csv, table1.csv, measure-report.json and report.html."""
    measured = pipeline.measure(
        study,
        mappings=mappings,
        accept_partial=accept_partial,
        published=published,
        reporter=_reporter(),
        form=_form(options),
    )
    _show(measured, study, quiet=quiet)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@_mappings
@_accept_partial
@_quiet
def verify(study: Path, mappings: Path | None, accept_partial: bool, quiet: bool) -> None:
    """Check STUDY again: hashes, the figures computed anew, arithmetic, references, FHIR validity."""
    with _screen(quiet=quiet) as screen:
        _, checked = pipeline.verify(study, mappings=mappings, accept_partial=accept_partial, voice=screen.voice)
    if not quiet:
        click.echo(f"{study}: records, cohort and figures are what was written and agree ({checked} relations checked)")


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write the worksheet, .xlsx or .csv by its name."
)
@click.option("--in", "given", metavar="FILE", type=click.Path(path_type=Path), help="Take in a worksheet, filled in.")
@click.option("--all", "everything", is_flag=True, help="With --out: ask for every course in the figures.")
@_mappings
@_accept_partial
@_quiet
def review(
    study: Path,
    out: Path | None,
    given: Path | None,
    everything: bool,
    mappings: Path | None,
    accept_partial: bool,
    quiet: bool,
) -> None:
    """Ask a clinician to judge the courses of STUDY whose effect no record tells, and take the judgements in.

    The worksheet holds records of single children and stays in the hospital. All of its rows are taken in, or none.
    """
    if out is not None and given is None:
        written = pipeline.write_review(study, out, everything=everything, accept_partial=accept_partial)
        _say(f"{written.rows} judgements are asked for in {out}", quiet=quiet)
        _say(f"filled in, take them in with: crmo-fhir review {study} --in {out}", quiet=quiet)
        return
    if given is None or out is not None or everything:
        raise UsageError("review takes either --out FILE (with --all, if wanted) or --in FILE; give one of them")
    with _screen(quiet=quiet) as screen:
        taken = pipeline.read_review(study, given, mappings=mappings, accept_partial=accept_partial, voice=screen.voice)
    what = f" as review {taken.number}; next: crmo-fhir measure {study}" if taken.rows else ""
    _say(f"{taken.rows} judgements taken in, {taken.left_open} rows left open{what}", quiet=quiet)


@cli.command()
@click.argument("source", required=False)
@_extract_options
@_study_option
@_published
@_form_options
@_quiet
def run(source: str | None, study: Path, published: Path | None, quiet: bool, **options: Any) -> None:
    """Extract and measure in one go."""
    form = _form(options)
    _extract(source, study, options, quiet=quiet)
    measured = pipeline.measure(
        study,
        mappings=options["mappings"],
        accept_partial=options["accept_partial"],
        published=published,
        reporter=_reporter(),
        form=form,
    )
    _show(measured, study, quiet=quiet)


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=click.IntRange(2, 100),
    default=5,
    show_default=True,
    help="Least count that is shown beside zero.",
)
@click.option(
    "--rounding", metavar="BASE", type=click.IntRange(0, 100), default=0, help="Round all counts to a multiple of BASE."
)
@click.option(
    "--after",
    metavar="STUDY",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Another study with children of this one whose releases count as earlier ones too.",
)
@click.option("--lang", type=click.Choice(["en", "da"]), help="Language of report.html (default: that of the study).")
@_mappings
@_accept_partial
@_published
@_quiet
def release(
    study: Path,
    threshold: int,
    rounding: int,
    after: tuple[Path, ...],
    lang: Literal["en", "da"] | None,
    mappings: Path | None,
    accept_partial: bool,
    published: Path | None,
    quiet: bool,
) -> None:
    """Make the copy of the figures of STUDY that may leave the hospital: STUDY/release, small counts masked.

    Masked are counts under the threshold and what would give them away, also together with earlier releases.
    """
    released = pipeline.release(
        study,
        Disclosure(threshold, rounding),
        mappings=mappings,
        accept_partial=accept_partial,
        published=published,
        after=after,
        lang=lang,
    )
    if not quiet:
        click.echo(f"{released.shown} of {released.counts} counts are shown, {released.counts - released.shown} masked")
        click.echo(f"what may leave the hospital is in {study / 'release'}")


@cli.command()
@click.argument("earlier", type=click.Path(path_type=Path))
@click.argument("later", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the records, one a row, as CSV.")
def diff(earlier: Path, later: Path, out: Path | None) -> None:
    """What is new, changed, vanished or merged between the pulls of two studies."""
    changes = pipeline.diff(earlier, later, out)
    if not changes:
        click.echo("the two pulls hold the same records")
        return
    counted = Counter((change.type, str(change.state)) for change in changes)
    states = ("new", "changed", "vanished", "merged")
    click.echo(f"{'':<26}" + "".join(f"{state:>10}" for state in states))
    for kind in sorted({change.type for change in changes}):
        click.echo(f"{kind:<26}" + "".join(f"{counted[kind, state]:>10}" for state in states))
    if out is not None:
        click.echo(f"the {len(changes)} records are listed in {out}")


@cli.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--server", "to", metavar="URL", help="The FHIR base URL (default: where the records came from).")
@click.option("--confirm", metavar="SHA256", default="", help="Write what the dry run showed under this hash.")
@click.option("--withdraw", is_flag=True, help="Take back what was published: its status becomes `error`.")
@click.option("--individual", is_flag=True, help="Also the report of each child, as `measure --individual` made it.")
@click.option(
    "--observations", is_flag=True, help="Also the effects that the study attributed to treatments, on the patients."
)
@click.option(
    "--over", metavar="TYPE/ID/_history/V", multiple=True, help="This version, by somebody else, may be replaced."
)
@_mappings
@_reach_options
@_quiet
def publish(
    study: Path,
    to: str | None,
    confirm: str,
    withdraw: bool,
    individual: bool,
    observations: bool,
    over: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> None:
    """Write the MeasureReport of STUDY back to the server, with the Measure and Library it answers to.

    Without --confirm nothing is written: it prints method, URL and body of each write, and the hash that approves them.
    """
    config = _config()
    with _screen(quiet=quiet) as screen:
        published = pipeline.publish(
            study,
            to=to or "",
            allowed=_listed(config, "publish"),
            confirm=confirm.strip().lower(),
            withdraw=withdraw,
            individual=individual,
            observations=observations,
            over=over,
            mappings=options["mappings"],
            server=_server(options, log=screen.log),
            voice=screen.voice,
        )
    plan = published.plan
    if not quiet:
        for write, held in plan.there:
            click.echo(_one_line(f"already there: {write.type}/{held.id}, version {held.version}"))
        for write, held in zip(plan.writes, published.written, strict=False):
            done = "updated" if write.held else "created"
            click.echo(_one_line(f"{done}: {write.type}/{held.id}, version {held.version}"))
    if published.written:
        _say(f"read back and found as sent; the receipt is in {study / 'receipts'}", quiet=quiet)
    elif not plan.requests:
        _say(f"nothing to write to {plan.server}", quiet=quiet)
    else:
        click.echo(plan.text)
        click.echo("In the Provenance, targets become the versions written, and the time of writing is entered.")
        click.echo(f"\nNothing was written. SHA-256 of the requests above: {plan.sha256}")
        click.echo(f"To write them, give the same command with --confirm {plan.sha256}")


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        click.echo(text)


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
    if not measured.study.complete:
        missing = ", ".join(f"{state} {cells}" for state, cells in measured.study.ledger.items() if state not in WHOLE)
        click.echo(
            f"\npartial: not every record came from the source ({missing or 'see the quarantine'}); figures may be too small"
        )
    click.echo(f"\nresults.csv, table1.csv, measure-report.json and report.html are in {study}")
