"""Foci: distinct (bone, side) of each child, ever (fhir-input, row focus)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

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
