"""OperationOutcomes (FHIR R4): what a server says of a failure, cut down to what may stand in a message."""

import re
from collections.abc import Collection
from typing import Any

_WORDS = frozenset(
    re.findall(
        r"[a-z]+",
        """
        a accepted access admin all allowed an and any are argument at authentication authorization authorized bad be because
        been busy by can cannot changed client code combination conflict contain contains could count credentials data date
        deleted denied did disabled does down due duplicate element empty enabled encountered endpoint entry error exceeded
        exception exist exists expected expired export failed failure file filter for format forbidden found from generate
        generated given gone granted group has have id identifier ignored in incomplete information insufficient internal
        invalid is it its job known later length limit limits links logical longer malformed maximum memory method minimum
        missing modifier more must name no not of offset on one only operation or order out page pages paging parameter
        parameters parse permission permitted please prefix privileges process processing query range rate read reference
        refused request requests required requires reset resource resources response result results retry scope scopes search
        searching server service session size snapshot some specified state status store such support supported syntax system
        temporarily than that the there this throttled time timed timeout to token too try type types unable unauthorized
        unavailable unexpected unknown unprocessable unrecognized unsupported until url use used user valid validation value
        values version was we were with within without write wrong you your
        """,
    )
)
"""The words of a server's own text that a message may repeat: everything else in it might be out of a record."""
_WORD = re.compile(r"[^\s\"'`,;()\[\]{}<>]+")


def issue_codes(resource: object, severities: Collection[str] = ("fatal", "error")) -> tuple[str, ...]:
    """The issue types of an OperationOutcome of these severities (FHIR issue-type codes; never its free text)."""
    found = []
    for issue in _issues(resource):
        if issue.get("severity") in severities:
            code = issue.get("code")
            found.append(code if isinstance(code, str) and re.fullmatch(r"[a-z-]{1,40}", code) else "unknown")
    return tuple(dict.fromkeys(found))


def _issues(resource: object) -> list[dict[str, Any]]:
    if not isinstance(resource, dict) or resource.get("resourceType") != "OperationOutcome":
        return []
    issues = resource.get("issue")
    return [issue for issue in (issues if isinstance(issues, list) else []) if isinstance(issue, dict)]


def said(resource: object, names: Collection[str] = ()) -> str:
    """What an OperationOutcome says, fit for a message: its issue types, and of its text the words that name nobody.

    A word is repeated where it is one of `_WORDS` or of `names`, the type and the parameters we sent ourselves; `…` stands
    for the rest, which may be an id or a name.
    """
    known = {name.casefold(): name for name in names}
    texts, places = [], []
    for issue in _issues(resource):
        if issue.get("severity") not in ("fatal", "error"):
            continue
        details = issue.get("details")
        text = issue.get("diagnostics") or (details.get("text") if isinstance(details, dict) else None)
        words = []
        for index, raw in enumerate(_WORD.findall(text[:1000]) if isinstance(text, str) else ()):
            word = raw.strip(".:!?*=")
            # Past the first word a capital begins a name, though it be spelt like a plain word.
            plain = word.casefold() if index == 0 else word
            words.append(known.get(word.casefold()) or (plain if plain in _WORDS else "…"))
        places += _places(issue, set(names))
        shown = re.sub(r"…( …)*", "…", " ".join(words))
        if re.search(r"\w", shown):
            texts.append(shown[:200])
    codes = " at ".join(filter(None, (", ".join(issue_codes(resource)), ", ".join(dict.fromkeys(places)))))
    return f"{codes}: {'; '.join(dict.fromkeys(texts))}" if texts else codes


def _places(issue: dict[str, Any], names: Collection[str]) -> list[str]:
    """The element paths of an issue (`MeasureReport.group[0].code`) all of whose names are among `names`."""
    paths = issue.get("expression")
    return [
        path
        for path in (paths if isinstance(paths, list) else [])
        if isinstance(path, str)
        and re.fullmatch(r"[A-Z][A-Za-z]+(\.[a-z][A-Za-z]*(\[\d{1,4}\])?)+", path)
        and set(re.findall(r"[A-Za-z]+", path)) <= set(names)
    ]
