"""The facts of the candidates, read through the views (fhir-input: reading rules, where each fact comes from).

Nothing is judged here: a record that cannot be used as it is appears in `listed` with its reason, a code that no map
places in `unmapped`, and the rooms that follow decide what counts.
"""

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.engine import Engine
from crmo_fhir.fhir.codings import Coding
from crmo_fhir.fhir.dates import PartialDate, parse_date
from crmo_fhir.fhir.references import Identifier, Key, parse, resolve
from crmo_fhir.mapping.query import open_view, run_by_base
from crmo_fhir.mapping.units import convert, is_possible
from crmo_fhir.model.records import RawFile
from crmo_fhir.model.review import ASSESSMENT, WRITTEN
from crmo_fhir.model.tables import FACTS, REPORT_CHARACTERS, SEXES, UNSPECIFIED, one_line, type_of

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

VERIFICATIONS = {"confirmed", "unconfirmed", "provisional", "differential", "refuted", "entered-in-error"}
MOST_SUPPLY_DAYS = 3660
"""A supply beyond ten years, or below none, is a slip of the pen, and not known."""
DRUG_TYPES = ("MedicationStatement", "MedicationRequest", "MedicationDispense", "MedicationAdministration", "Procedure")
VIEW_OF = {
    "MedicationStatement": "medication_statement",
    "MedicationRequest": "medication_request",
    "MedicationDispense": "medication_dispense",
    "MedicationAdministration": "medication_administration",
    "Procedure": "procedure",
}
RUNG_OF = {
    "MedicationStatement": "statement",
    "MedicationRequest": "order",
    "MedicationDispense": "dispense",
    "MedicationAdministration": "administration",
    "Procedure": "administration",
}
TAKEN = {
    "MedicationStatement": {"active", "completed", "stopped", "recorded", "unknown"},
    "MedicationRequest": {"active", "completed", "stopped", "ended"},
    "MedicationDispense": {"completed", "in-progress", "unknown"},
    "MedicationAdministration": {"completed", "in-progress"},
    "Procedure": {"completed", "in-progress", "stopped", "unknown"},
}
"""Statuses that mean the drug was taken, given or (for orders) meant to be (edge cases E10 to E14)."""
DOSE_TEXT = 80
"""So many characters of a dosage in words are kept."""
NO_ORDER = {"proposal", "plan", "option"}
NOT_TAKING = {"not-taking"}
"""R5 adherence that says a drug was not taken; `stopped` and its kinds say that it was taken before (edge case E14)."""
ON_HOLD = {"MedicationStatement", "MedicationRequest"}
ON_IMAGES = {"lesion-count", "rai-cromris", "rinbo"}
"""Analytes that are read from an imaging study, of the whole body or of the regions it shows."""
INDICES = {"rai-cromris", "rinbo"}
"""Indices of a whole study; a score of one of its sites is not one of them."""


@dataclass(slots=True)
class _Reader:
    """The views of one study, read once each, with keys, references and dates resolved the same way everywhere."""

    engine: Engine
    artifacts: Artifacts
    files: Sequence[RawFile]
    aliases: Mapping[str, Key]
    zone: ZoneInfo
    known: dict[Key, str] = field(default_factory=dict)
    identifiers: dict[Identifier, Key] = field(default_factory=dict)
    read: dict[str, list[Row]] = field(default_factory=dict)
    listed: list[Row] = field(default_factory=list)
    unmapped: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    contacts: list[Row] = field(default_factory=list)

    def rows(self, view_name: str) -> list[Row]:
        """The rows of a shipped view over every landed file of its type; `key` names the resource, `base` its base."""
        if view_name in self.read:
            return self.read[view_name]
        view = self.artifacts.view(view_name)
        files = [file for file in self.files if file.type == view["resource"]]
        if not files:
            return self.read.setdefault(view_name, [])
        ready = open_view(view, self.engine)
        prefixes = {file.base: file.prefix for file in files}
        found = []
        for base, rows in run_by_base(self.engine, ready, [(file.path, file.base) for file in files]):
            for values in rows:
                row: Row = dict(zip(ready.columns, values, strict=True))
                key = Key(base, view["resource"], row["key"].partition("/")[2])
                row["key"] = self.known.setdefault(key, prefixes[base] + row["key"])
                row["base"] = base
                found.append(row)
        self.read[view_name] = found
        return found

    def codings(self, view_name: str) -> dict[str, list[Row]]:
        """The rows of a view of codings by resource."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows(view_name):
            found[row["key"]].append(row)
        return found

    def note(self, row: Row, reason: str, patient: str | None = None) -> None:
        """Note a record that could not be used as it is."""
        self.listed.append(
            {"source": row["key"], "resource_type": type_of(row["key"]), "reason": reason, "patient": patient}
        )

    def reference(self, row: Row, reference: object, element: str) -> str | None:
        """The key a reference names; one that names nothing landed is listed (never joined to a foreign base)."""
        if not reference:
            return None
        key = resolve(reference, row["base"], self.known, self.aliases, self.identifiers)
        if key is None:
            kind = parse(reference, row["base"]).kind
            self.note(
                row,
                f"{element}: {'reference to another server' if kind == 'foreign' else 'reference to no record here'}",
            )
            return None
        return self.known[key]

    def references(self, row: Row, references: Iterable[str], element: str) -> list[str]:
        """The keys of several references, those that name nothing listed."""
        return sorted({key for r in references if (key := self.reference(row, r, element))})

    def patient(self, row: Row) -> str | None:
        """The Patient a record is about."""
        if row["subject"] is None and row["subject_value"]:
            logical = {"identifier": {"system": row["subject_system"], "value": row["subject_value"]}}
            return self.reference(row, logical, "subject")
        if row["subject"] is None:
            self.note(row, "no subject")
        return self.reference(row, row["subject"], "subject")

    def date(self, row: Row, *names: str) -> PartialDate | None:
        """The first of these columns that holds a date; malformed text is listed."""
        for name in names:
            text = row.get(name)
            if isinstance(text, list):
                text = text[0] if text else None
            if text is None:
                continue
            if (when := parse_date(str(text), self.zone)) is not None:
                return when
            self.note(row, "malformed date")
        return None

    def seen(self, key: str, patient: str | None, *dates: PartialDate | None) -> None:
        """Note the days on which a record shows the child was seen."""
        if patient is not None:
            for when in dates:
                if when is not None:
                    self.contacts.append(
                        {"source": key, "patient": patient, "date_low": when.low, "date_high": when.high}
                    )

    def not_placed(self, resource_type: str, codings: Iterable[Coding], text: str | None = None) -> None:
        """Count codes that no map placed (the text, where there is no code at all)."""
        entries = {(c.system or "", c.code or "", c.display or "", resource_type) for c in codings}
        self.unmapped.update(entries or ({("", "", text, resource_type)} if text else ()))


def ends(name: str, when: PartialDate | None) -> Row:
    """The two columns of a partial date."""
    return {f"{name}_low": when.low if when else None, f"{name}_high": when.high if when else None}


def paired(row: Row, *names: str) -> list[Coding]:
    """Codings out of the aligned collections `<name>_system`, `<name>_code`."""
    return [
        Coding(system, code, None)
        for name in names
        for system, code in zip(row[f"{name}_system"] or (), row[f"{name}_code"] or (), strict=True)
    ]


def displayed(row: Row, *names: str) -> list[Coding]:
    """Codings with their display, out of the aligned collections `<name>_shown_system`, `_code` and `_display`."""
    return [
        Coding(*parts)
        for name in names
        for parts in zip(*(row[f"{name}_shown_{part}"] or () for part in ("system", "code", "display")), strict=True)
    ]


def coding_of(row: Row) -> Coding:
    """The coding in one row of a view of codings."""
    return Coding(row["system"], row["code"], row["display"])


def read_facts(
    engine: Engine, artifacts: Artifacts, files: Sequence[RawFile], aliases: Mapping[str, Key], zone: ZoneInfo
) -> "tuple[dict[str, pd.DataFrame], dict[str, int]]":
    """The tables of `model.tables.FACTS` and the number of records of each type.

    `aliases` maps the fullUrls that references may use (`urn:uuid:…`) to keys. Raises IncompleteError where a landed
    file does not fit its read schema.
    """
    reader = _Reader(engine, artifacts, files, aliases, zone)
    base_views = {
        name: reader.rows(name)
        for name in (
            "patient",
            "condition",
            "encounter",
            *VIEW_OF.values(),
            "observation",
            "imaging_study",
            "diagnostic_report",
            "adverse_event",
        )
    }
    medications = reader.codings("medication_code")
    reader.identifiers = _identifiers(reader)
    type_counts = Counter(type_of(row["key"]) for rows in base_views.values() for row in rows)

    facts: dict[str, list[Row]] = {table.name: [] for table in FACTS}
    facts["patient"] = list(_patients(reader, base_views["patient"]))
    facts["patient_link"] = list(_patient_links(reader, facts["patient"]))
    reader.identifiers = _identifiers(reader, facts["patient_link"])
    encounters = _encounters(reader, base_views["encounter"])
    facts["condition"], condition_sites = _conditions(reader, base_views["condition"], encounters)
    diseases: dict[str, set[str]] = defaultdict(set)
    for row in facts["condition"]:
        diseases[row["condition"]].add(row["disease"])
    facts["exposure"] = [
        exposure
        for resource_type in DRUG_TYPES
        for exposure in _exposures(reader, resource_type, base_views[VIEW_OF[resource_type]], medications, diseases)
    ]
    drugs = {row["source"] for row in facts["exposure"]}
    facts["adverse_event"] = list(_adverse_events(reader, base_views["adverse_event"]))
    facts["observed"], lesion_sites, facts["lab"] = _observations(reader, base_views["observation"], drugs)
    facts["site"] = condition_sites + lesion_sites
    facts["imaging"] = list(_imaging(reader, base_views))
    facts["report"] = list(_reports(reader, base_views["diagnostic_report"], {r["imaging"] for r in facts["imaging"]}))
    facts["contact"] = reader.contacts
    facts["listed"] = list({(r["source"], r["reason"]): r for r in reader.listed}.values())
    facts["unmapped"] = [
        {"system": system, "code": code, "display": display, "resource_type": resource_type, "count": count}
        for (system, code, display, resource_type), count in reader.unmapped.items()
    ]
    return {table.name: table.frame(facts[table.name]) for table in FACTS}, dict(type_counts)


def _identifiers(reader: _Reader, links: Iterable[Row] = ()) -> dict[Identifier, Key]:
    """Business identifiers that name exactly one person (for references that hold an identifier only).

    Several landed Patients are one person where `links` join them; which of its records is named makes no difference then.
    """
    key_of = {name: key for key, name in reader.known.items()}
    persons: dict[str, set[str]] = {}
    for link in links:
        joined = set[str]().union(*(persons.get(name, {name}) for name in (link["patient"], link["other"])))
        persons |= dict.fromkeys(joined, joined)
    return {
        identifier: key_of[first]
        for identifier, names in _holders(reader.rows("patient_identifier")).items()
        if names <= persons.get(first := min(names), {first})
    }


def _holders(rows: Iterable[Row]) -> dict[Identifier, set[str]]:
    """The Patients that have each business identifier."""
    holders: dict[Identifier, set[str]] = defaultdict(set)
    for row in rows:
        if (system := (row["system"] or "").strip()) and (value := (row["value"] or "").strip()):
            holders[system, value].add(row["key"])
    return holders


def _patients(reader: _Reader, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        death = reader.date(row, "deceased_date")
        yield {
            "patient": row["key"],
            "sex": row["gender"] if row["gender"] in SEXES else "unknown",
            **ends("birth", reader.date(row, "birth_date")),
            "deceased": bool(row["deceased"]) or row["deceased_date"] is not None,
            **ends("death", death),
        }


def _patient_links(reader: _Reader, patients: list[Row]) -> Iterator[Row]:
    for row in reader.rows("patient_link"):
        if row["type"] in {"replaced-by", "replaces"} and (other := reader.reference(row, row["other"], "link")):
            yield {"patient": row["key"], "other": other, "type": row["type"]}
    described = {p["patient"]: (p["birth_low"], p["birth_high"], p["sex"]) for p in patients}
    lasting = [row for row in reader.rows("patient_identifier") if row["use"] not in {"temp", "old"}]
    for keys in _holders(lasting).values():
        first, *rest = sorted(keys)
        for other in rest:
            if described[first] == described[other]:
                yield {"patient": first, "other": other, "type": "same-identifier"}
            else:
                reader.note({"key": other}, "shares an identifier with another child", other)


def _encounters(reader: _Reader, rows: Iterable[Row]) -> dict[str, PartialDate]:
    starts = {}
    for row in rows:
        patient = reader.patient(row)
        start, end = reader.date(row, "start", "actual_start"), reader.date(row, "end", "actual_end")
        if row["status"] in {"entered-in-error", "cancelled", "planned"}:
            continue
        reader.seen(row["key"], patient, start, end)
        if start is not None:
            starts[row["key"]] = start
    return starts


def _verification(reader: _Reader, row: Row) -> str:
    codes = [code for code in row["verification"] or () if code in VERIFICATIONS]
    if codes:
        return str(codes[0])
    if row["verification"] or row["verification_text"]:
        reader.note(row, "verificationStatus not understood")
        return "unconfirmed"
    return "confirmed"


def _conditions(
    reader: _Reader, rows: Iterable[Row], encounters: Mapping[str, PartialDate]
) -> tuple[list[Row], list[Row]]:
    """Rows of the tables `condition` and `site`."""
    crmo, sapho = reader.artifacts.value_set("crmo"), reader.artifacts.value_set("sapho")
    words = reader.artifacts.value_set("crmo-text")
    codings, places = reader.codings("condition_code"), reader.codings("condition_site")
    conditions, sites = [], []
    for row in rows:
        patient, verification = reader.patient(row), _verification(reader, row)
        coded = [coding_of(c) for c in codings.get(row["key"], ())]
        onset = reader.date(row, "onset_datetime", "onset_start")
        when, source = reader.date(row, "recorded_date"), "recordedDate"
        if when is None and (encounter := reader.reference(row, row["encounter"], "encounter")) in encounters:
            when, source = encounters[str(encounter)], "encounter"
        if when is None:
            when, source = onset, "onset"
        if verification != "entered-in-error":
            reader.seen(row["key"], patient, reader.date(row, "recorded_date"))
        found = [
            (disease, "code")
            for disease, codes in (("crmo", crmo), ("sapho", sapho))
            if any(codes.contains(c) for c in coded)
        ]
        if ("crmo", "code") not in found and any(
            words.matches_text(t) for t in (row["text"], *(c.display for c in coded)) if t
        ):
            found.append(("crmo", "text"))
        for disease, evidence in found or [("other", "code")]:
            conditions.append(
                {
                    "condition": row["key"],
                    "patient": patient,
                    "disease": disease,
                    "evidence": evidence,
                    "verification": verification,
                    **ends("date", when),
                    "date_source": source if when else None,
                    **ends("onset", onset),
                }
            )
        if ("crmo", "code") in found:
            side = _side(reader, [c for c in coded if crmo.contains(c)])
            for place in places.get(row["key"], ()):
                for bone, own_side in _bones(reader, "Condition", paired(place, "site"), place["text"]):
                    sites.append(
                        {
                            "source": row["key"],
                            "patient": patient,
                            "bone": bone,
                            "side": own_side or side,
                            "status": verification,
                            **ends("date", when),
                        }
                    )
    return conditions, sites


def _side(reader: _Reader, codings: Iterable[Coding]) -> str | None:
    """The laterality that codings name, themselves or by a suffix or qualifier; both where they name left and right."""
    named = {side for coding in codings if (side := reader.artifacts.side(coding))}
    return "both" if len(named) > 1 else named.pop() if named else None


def _bones(
    reader: _Reader, resource_type: str, codings: list[Coding], text: str | None
) -> list[tuple[str, str | None]]:
    """The bones one bodySite concept names, each with the side the concept names; unplaced codes are counted."""
    bones = reader.artifacts.concept_map("bone")
    sides = reader.artifacts.concept_map("side")
    found = sorted({bone for coding in codings if (bone := bones.translate(coding))})
    if not found:
        reader.not_placed(resource_type, [c for c in codings if not sides.translate(c)], text)
    return [(bone, _side(reader, codings)) for bone in found]


def _drugs(reader: _Reader, row: Row, codings: list[Row], medications: Mapping[str, list[Row]]) -> list[Coding]:
    """The codings of the medication a record names: in place, contained, or in the Medication it refers to."""
    reference = row.get("medication_reference") or row.get("medication_reference_r5")
    direct = [coding_of(c) for c in codings if c.get("contained", "direct") == "direct"]
    if reference and reference.startswith("#"):
        return direct + [coding_of(c) for c in codings if c["contained"] == reference[1:]]
    if reference and (key := reader.reference(row, reference, "medication")):
        return direct + [coding_of(c) for c in medications.get(key, ())]
    return direct


def _taken(resource_type: str, row: Row) -> str:
    """Whether a record says the drug was taken: yes, no or on-hold (edge cases E11 to E14)."""
    status = row["status"] or "unknown"
    adherence = set(row.get("adherence") or ())
    if resource_type == "MedicationRequest" and (row["intent"] in NO_ORDER or row["do_not_perform"]):
        return "no"
    if resource_type in ON_HOLD and (status == "on-hold" or any(a.startswith("on-hold") for a in adherence)):
        return "on-hold"
    return "yes" if status in TAKEN[resource_type] and not adherence & NOT_TAKING else "no"


def _status(resource_type: str, row: Row, taken: str) -> str:
    """The status as found; where something else says the drug was not taken, that too."""
    status = str(row["status"] or "unknown")
    if taken != "no" or status not in TAKEN[resource_type]:
        return status
    return f"{status}, only proposed" if resource_type == "MedicationRequest" else f"{status}, not taking"


def _exposures(
    reader: _Reader,
    resource_type: str,
    rows: Iterable[Row],
    medications: Mapping[str, list[Row]],
    diseases: Mapping[str, set[str]],
) -> Iterator[Row]:
    codings = reader.codings(VIEW_OF[resource_type] + "_code")
    imaging = reader.artifacts.value_set("mri-procedure")
    into_joint = reader.artifacts.value_set("intra-articular-route")
    for row in rows:
        patient = reader.patient(row)
        coded = _drugs(reader, row, codings.get(row["key"], []), medications)
        agents = _agents(reader, coded)
        start, end = _period(reader, resource_type, row)
        taken = _taken(resource_type, row)
        if taken == "yes" and resource_type != "MedicationRequest":
            reader.seen(row["key"], patient, start, end)
        if not agents:
            if not any(imaging.contains(c) for c in coded):
                text = row.get("medication_text") or row.get("medication_text_r5") or row.get("text")
                reader.not_placed(resource_type, coded, text)
            continue
        once = RUNG_OF[resource_type] == "administration" and _once(row, start, end)
        for agent, drug_class in agents:
            yield {
                "source": row["key"],
                "patient": patient,
                "rung": RUNG_OF[resource_type],
                "agent": agent,
                "drug_class": drug_class,
                "status": _status(resource_type, row, taken),
                "taken": taken,
                **ends("start", start),
                **ends("end", None if once else end),
                "given_once": once,
                "supply_days": _supply_days(row),
                "intra_articular": any(
                    into_joint.contains(c) for c in (*coded, *(paired(row, "route") if "route_code" in row else ()))
                ),
                "indications": _indications(reader, row, diseases),
                "stop_reasons": _stop_reasons(reader, resource_type, row),
                **ends("reason", reader.date(row, "asserted")),
                "dose": _dose(row),
                "product": _product(reader, row, coded),
                "request": _request(reader, row),
            }


def _agents(reader: _Reader, codings: list[Coding]) -> list[tuple[str, str]]:
    """The agents codings name, each with its class; a group-level code gives way to an agent of its class."""
    found = {drug for coding in codings if (drug := reader.artifacts.drug(coding))}
    specific = {drug_class for agent, drug_class in found if not agent.endswith(UNSPECIFIED)}
    return sorted((a, c) for a, c in found if not a.endswith(UNSPECIFIED) or c not in specific)


def _period(reader: _Reader, resource_type: str, row: Row) -> tuple[PartialDate | None, PartialDate | None]:
    if resource_type == "MedicationRequest":
        return reader.date(row, "bounds_start", "validity_start", "authored_on"), reader.date(
            row, "bounds_end", "validity_end"
        )
    if resource_type == "MedicationDispense":
        return reader.date(row, "handed_over", "prepared"), None
    return (
        reader.date(row, "start", "start_datetime", "start_r5", "start_datetime_r5"),
        reader.date(row, "end", "end_r5"),
    )


def _once(row: Row, start: PartialDate | None, end: PartialDate | None) -> bool:
    """Whether a drug was given at one time (a dateTime, or a period of hours), and not over a period.

    A period without an end is a course that goes on (fhir-input). One that ends before it starts is none of hours: it
    contradicts itself, which `cohort` refuses.
    """
    if end is not None:
        return start is not None and 0 <= (end.high - start.low).days <= 1
    return row["start"] is None and row["start_r5"] is None


def _supply_days(row: Row) -> float | None:
    if row.get("supply_days") is None:
        return None
    factor = {"wk": 7, "mo": 30, "a": 365, "h": 1 / 24}.get(row["supply_unit"] or "d", 1)
    days = float(row["supply_days"]) * factor
    return days if 0 <= days <= MOST_SUPPLY_DAYS else None


def _indications(reader: _Reader, row: Row, diseases: Mapping[str, set[str]]) -> list[str]:
    """What a drug was given for: crmo (SAPHO included), other, both, or nothing recorded."""
    named: set[str] = set()
    for reference in (*(row.get("reason_reference") or ()), *(row.get("reason_reference_r5") or ())):
        key = reader.reference(row, reference, "reason")
        if key in diseases:
            named.add("crmo" if diseases[str(key)] & {"crmo", "sapho"} else "other")
    if "reason_code" in row:
        disease = [reader.artifacts.value_set(name) for name in ("crmo", "sapho")]
        neutral = reader.artifacts.value_set("neutral-indication")
        for coding in paired(row, "reason", "reason_r5"):
            if any(codes.contains(coding) for codes in disease):
                named.add("crmo")
            elif not neutral.contains(coding):
                named.add("other")
    return sorted(named)


def _stop_reasons(reader: _Reader, resource_type: str, row: Row) -> list[str]:
    if "status_reason_code" not in row or (row["status"] or "") == "on-hold":
        return []
    reasons = reader.artifacts.concept_map("stop-reason")
    names = ["status_reason", "adherence_reason"] if "adherence_reason_code" in row else ["status_reason"]
    with_display = {(c.system, c.code): c for c in displayed(row, *names)}
    codings = [with_display.get((c.system, c.code), c) for c in paired(row, *names)]
    texts = [text for text in (*(row["status_reason_text"] or ()), row.get("adherence_reason_text")) if text]
    told = [*(reasons.translate(coding) for coding in codings), *(reasons.translate_text(text) for text in texts)]
    found = list(dict.fromkeys(reason for reason in told if reason))
    if not found:
        for text in texts or [None]:
            reader.not_placed(resource_type, codings, text)
    return found


def _dose(row: Row) -> str | None:
    """The first dosage of a record: amount and interval where they are coded, else its words (edge case E07)."""
    amount, unit = row.get("dose_value"), row.get("dose_unit") or row.get("dose_code")
    if amount is None or not unit:
        return " ".join(str(row.get("dose_text") or "").split())[:DOSE_TEXT] or None
    dose = f"{float(amount):g} {unit}"
    if row.get("dose_period") is None or not row.get("dose_period_unit"):
        return dose
    times = int(row.get("dose_frequency") or 1)
    return f"{dose} {times} x / {float(row['dose_period']):g} {row['dose_period_unit']}"


def _product(reader: _Reader, row: Row, codings: list[Coding]) -> str | None:
    """The brand or biosimilar that the words of a drug name (edge case E08)."""
    products = reader.artifacts.concept_map("product")
    words = (row.get("medication_text"), row.get("medication_text_r5"), *(row.get("contained_text") or ()))
    texts = [text for text in (*words, *(c.display for c in codings)) if text]
    return next((product for text in texts if (product := products.translate_text(text))), None)


def _request(reader: _Reader, row: Row) -> str | None:
    request = row.get("request")
    first = request[0] if isinstance(request, list) and request else request
    return reader.reference(row, first, "request") if isinstance(first, str) else None


def _adverse_events(reader: _Reader, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        patient = reader.patient(row)
        when = reader.date(row, "date", "occurrence", "detected")
        if row["actuality"] == "potential" or row["status"] in {"entered-in-error", "cancelled"}:
            continue
        reader.seen(row["key"], patient, when)
        for suspect in reader.references(row, (*(row["suspect"] or ()), *(row["suspect_r5"] or ())), "suspectEntity"):
            yield {
                "source": row["key"],
                "patient": patient,
                "suspect": suspect,
                "status": row["status"],
                **ends("date", when),
            }


def _observations(reader: _Reader, rows: Iterable[Row], drugs: set[str]) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the tables `observed`, `site` (lesion findings) and `lab`."""
    codings = reader.codings("observation_code")
    kinds = (("clinical", "treatment-effect", "clinical-effect"), ("mri", "mri-change", "mri-effect"))
    lesions, analytes = reader.artifacts.value_set("lesion-finding"), reader.artifacts.concept_map("analyte")
    observed, sites, labs = [], [], []
    for row in rows:
        coded = [coding_of(c) for c in codings.get(row["key"], ())]
        if any(c.system == ASSESSMENT and c.code in WRITTEN for c in coded):
            continue  # what a study wrote back is no evidence, nor a day on which the child was seen
        patient = reader.patient(row)
        when = reader.date(row, "effective_datetime", "effective_instant", "effective_end", "effective_start", "issued")
        status = row["status"] or "unknown"
        if status not in {"entered-in-error", "cancelled"}:
            reader.seen(row["key"], patient, when)
        for kind, codes, answers in kinds:
            if any(reader.artifacts.value_set(codes).contains(c) for c in coded):
                observed.append(_judged(reader, row, patient, kind, answers, when, drugs))
                break
        else:
            if any(lesions.contains(c) for c in coded):
                if row["value_boolean"] is not False:
                    for bone, side in _bones(reader, "Observation", paired(row, "site"), row["site_text"]):
                        sites.append(
                            {
                                "source": row["key"],
                                "patient": patient,
                                "bone": bone,
                                "side": side,
                                "status": status,
                                **ends("date", when),
                            }
                        )
            elif analyte := next((a for c in coded if (a := analytes.translate(c))), None):
                if lab := _lab(reader, row, patient, analyte, when):
                    labs.append(lab)
            else:
                reader.not_placed("Observation", coded)
    return observed, sites, labs


def _judged(
    reader: _Reader, row: Row, patient: str | None, kind: str, answers: str, when: PartialDate | None, drugs: set[str]
) -> Row:
    answer = reader.artifacts.concept_map(answers)
    values = [value for coding in paired(row, "value") if (value := answer.translate(coding))]
    if not values:
        reader.not_placed("Observation", paired(row, "value"))

    def medications(name: str, element: str) -> list[str]:
        return [
            k
            for k in reader.references(row, row[name] or (), element)
            if k in drugs or type_of(k).startswith("Medication")
        ]

    return {
        "assessment": row["key"],
        "patient": patient,
        "kind": kind,
        "status": row["status"] or "unknown",
        "value": values[0] if values else None,
        **ends("date", when),
        **ends("issued", reader.date(row, "issued")),
        "part_of": medications("part_of", "partOf"),
        "focus": medications("focus", "focus"),
        "derived_from": reader.references(row, row["derived_from"] or (), "derivedFrom"),
    }


def _lab(reader: _Reader, row: Row, patient: str | None, analyte: str, when: PartialDate | None) -> Row | None:
    value = row["quantity"] if row["quantity"] is not None else row["value_integer"]
    unit = row["quantity_code"] or row["quantity_unit"]
    if value is None:
        reader.note(row, f"{analyte} without a value", patient)
        return None
    ends_at = {float(high) for high in row["range_high"] or ()}
    converted = convert(analyte, str(value), unit, ends_at.pop() if len(ends_at) == 1 else None)
    if converted is None:
        reader.note(row, f"{analyte} without a unit" if not unit else f"{analyte} in a unit not known for it", patient)
        return None
    if not is_possible(analyte, *converted):
        reader.note(row, f"{analyte} outside its scale", patient)
        return None
    if analyte in INDICES and (row["site_code"] or row["site_text"]):
        reader.note(row, f"{analyte} of one site, not of all", patient)
        return None
    return {
        "lab": row["key"],
        "patient": patient,
        "analyte": analyte,
        "status": row["status"] or "unknown",
        **ends("date", when),
        "value": converted[0],
        "unit": converted[1],
        "comparator": row["quantity_comparator"],
        "studies": reader.references(row, row["derived_from"] or (), "derivedFrom") if analyte in ON_IMAGES else [],
    }


def _imaging(reader: _Reader, views: Mapping[str, list[Row]]) -> Iterator[Row]:
    """MR studies, from ImagingStudies and from Procedures and reports in the imaging value set."""
    mri, whole = reader.artifacts.value_set("mri-procedure"), reader.artifacts.value_set("mri-whole-body")
    modality, places = reader.artifacts.value_set("mr-modality"), reader.artifacts.concept_map("mri-region")
    bones = reader.artifacts.concept_map("bone")
    procedures = reader.codings("procedure_code")

    def study(row: Row, codings: list[Coding], *dates: str, is_mri: Callable[[Coding], bool]) -> Row | None:
        patient, when = reader.patient(row), reader.date(row, *dates)
        if row["status"] not in {"entered-in-error", "cancelled", "not-done"}:
            reader.seen(row["key"], patient, when)
        if not any(is_mri(c) for c in codings):
            return None
        return {
            "imaging": row["key"],
            "patient": patient,
            "status": row["status"],
            "whole_body": any(whole.contains(c) for c in codings),
            "regions": sorted(
                {
                    bone
                    for c in codings
                    if (place := places.translate(c) or bones.translate(c))
                    for bone in place.split("-and-")
                }
            ),
            **ends("date", when),
        }

    for row in views["imaging_study"]:
        modalities = paired(row, "modality", "modality_r5", "series_modality", "series_modality_r5")
        codes = paired(row, "procedure", "procedure_r5", "site", "site_r5")
        fits = modality.contains if modalities else mri.contains
        if found := study(row, modalities + codes, "started", is_mri=fits):
            yield found
    for row in views["procedure"]:
        codes = [*(coding_of(c) for c in procedures.get(row["key"], ())), *paired(row, "site")]
        if found := study(row, codes, "start", "start_datetime", "start_r5", "start_datetime_r5", is_mri=mri.contains):
            yield found
    for row in views["diagnostic_report"]:
        codes = paired(row, "code")
        found = study(row, codes, "effective_datetime", "effective_start", is_mri=mri.contains)
        if found and not (row["imaging"] or row["imaging_r5"]):
            yield found


REPORTED = {"final", "amended", "corrected", "appended", "preliminary", "partial"}
"""Statuses of a report whose text may be shown; `preliminary` and `partial` ones are marked where they are."""


def _reports(reader: _Reader, rows: Iterable[Row], studies: set[str]) -> Iterator[Row]:
    """The texts of the reports of MR studies, by the code of the report or the study it is of."""
    mri = reader.artifacts.value_set("mri-procedure")
    for row in rows:
        text = row["conclusion"] or _presented(row)
        if row["status"] not in REPORTED or not text:
            continue
        named = {resolve(r, row["base"], reader.known, reader.aliases) for r in (*row["imaging"], *row["imaging_r5"])}
        keys = {reader.known[key] for key in named if key is not None}
        if not (keys & studies or any(mri.contains(c) for c in paired(row, "code"))):
            continue
        patient, when = reader.patient(row), reader.date(row, "effective_datetime", "effective_start")
        if shown := one_line(text)[:REPORT_CHARACTERS]:
            yield {
                "report": row["key"],
                "patient": patient,
                "status": row["status"],
                **ends("date", when),
                "text": shown,
            }


def _presented(row: Row) -> str:
    """The text presented with a report, plain or as HTML; what is no text is passed over."""
    for name, read in (("plain", str), ("html", _text_of)):
        texts = [read(base64.b64decode(d, validate=True).decode("utf-8")) for d in row[name] or () if _is_text(d)]
        if texts:
            return " ".join(texts)
    return ""


def _is_text(data: str) -> bool:
    try:
        base64.b64decode(data, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return False
    return True


class _Words(HTMLParser):
    """What a reader of a page would read."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Scripts, styles and the head are no text; a tag parts words."""
        del attrs
        self._hidden += tag in {"script", "style"}
        self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        """The end of what is no text."""
        self._hidden -= tag in {"script", "style"} and self._hidden > 0
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        """A text."""
        if not self._hidden:
            self.words.append(data)


def _text_of(page: str) -> str:
    words = _Words()
    words.feed(page)
    words.close()
    return "".join(words.words)
