"""Foci: distinct (bone, side) of each child, ever (fhir-input, row focus)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from crmo_fhir.cohort.criteria import partial
from crmo_fhir.fhir.dates import PartialDate

COUNTED = {"confirmed", "final", "amended", "corrected", "preliminary"}
SIDES = {"left": ("left",), "right": ("right",), "both": ("left", "right"), None: (None,)}


def derive_foci(sites: Iterable[Mapping[str, Any]], person_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the table `foci` from the sites named by Conditions and lesion findings.

    A bone on both sides is two foci; a bone without a side is one focus, unless a sided one of that bone exists, which
    then stands for it. Records that do not hold (refuted, unconfirmed, entered in error) name no focus.
    """
    found: dict[tuple[str, str], dict[str | None, set[str]]] = defaultdict(lambda: defaultdict(set))
    for site in sites:
        if site["status"] in COUNTED and site["patient"] in person_of:
            for side in SIDES[site["side"]]:
                found[person_of[site["patient"]], site["bone"]][side].add(site["source"])
    foci: list[dict[str, Any]] = []
    for (person, bone), sides in found.items():
        unsided = sides.pop(None, set()) if len(sides) > 1 else set()
        foci.extend(
            {"person": person, "bone": bone, "side": side, "sources": sorted(sources | unsided)}
            for side, sources in sides.items()
        )
    return foci


def compute_focality(focus_count: int) -> str:
    """Unifocal for one focus, multifocal for more, unknown where the records name none."""
    return "unknown" if focus_count == 0 else "unifocal" if focus_count == 1 else "multifocal"


def compute_focality_at_diagnosis(
    person: str, sites: Iterable[Mapping[str, Any]], person_of: Mapping[str, str], diagnosis: PartialDate
) -> str:
    """Focality of the sites recorded by the date of diagnosis; unknown where partial or missing dates cannot tell (E47)."""
    certain, possible = [], []
    for site in sites:
        when = partial(dict(site), "date")
        if when is None or when.low <= diagnosis.high:
            possible.append(site)
            if when is not None and (when == diagnosis or when.high <= diagnosis.low):
                certain.append(site)
    told = {
        compute_focality(sum(focus["person"] == person for focus in derive_foci(some, person_of)))
        for some in (certain, possible)
    }
    return told.pop() if len(told) == 1 else "unknown"
