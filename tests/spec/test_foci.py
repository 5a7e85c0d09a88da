"""Foci: distinct (bone, side), ever (fhir-input, row focus; edge cases E45 to E47)."""

import pytest
from story import expect, figure, tell


@pytest.mark.parametrize(
    ("sites", "foci", "focality"),
    [
        ("tibia left", "tibia left", "unifocal"),
        ("tibia left, tibia left", "tibia left", "unifocal"),
        ("tibia left, tibia right", "tibia left, tibia right", "multifocal"),
        ("tibia both", "tibia left, tibia right", "multifocal"),
        ("tibia", "tibia", "unifocal"),
        ("tibia, tibia left", "tibia left", "unifocal"),
        ("tibia, femur left", "femur left, tibia", "multifocal"),
        ("sternum, clavicle left", "clavicle left, sternum", "multifocal"),
        ("", "", "unknown"),
    ],
)
def test_e45_e46_distinct_bone_and_side(sites, foci, focality):
    def table(text):
        return "bone|side\n" + "\n".join("|".join((*cell.split(), "")[:2]) for cell in text.split(", ") if cell)

    cohort = tell(site=table(sites))
    expect(cohort.tables["foci"], table(foci))
    assert figure(cohort, "cohort", "focality", focality) == (1, 1)


def test_sites_of_records_that_do_not_hold_are_no_foci():
    cohort = tell(
        site="""
        bone   | side | status
        tibia  | left | confirmed
        femur  | left | refuted
        fibula | left | entered-in-error
        pelvis | left | provisional
        """
    )
    expect(cohort.tables["foci"], "bone|side\ntibia|left")


def test_e45_foci_and_children_with_a_focus_are_two_figures():
    cohort = tell(
        patient="patient\nPatient/A\nPatient/B",
        condition="patient\nPatient/A\nPatient/B",
        site="""
        patient   | bone  | side
        Patient/A | tibia | left
        Patient/A | tibia | right
        Patient/B | femur | left
        """,
    )
    assert figure(cohort, "foci") == (3, 3)
    assert figure(cohort, "foci", "bone", "tibia") == (2, 3)
    assert figure(cohort, "foci", "bone-patients", "tibia") == (1, 2)


@pytest.mark.parametrize(
    ("dates", "at_diagnosis", "ever"),
    [
        ("2004-12-01, 2004-12-01", "multifocal", "multifocal"),
        ("2004-12-01, 2004-12-02", "unifocal", "multifocal"),
        ("2004-12-01, 2003-01-01", "multifocal", "multifocal"),
        ("2004-12-01, 2004", "unknown", "multifocal"),
        ("2004-12-01, ", "unknown", "multifocal"),
        ("2004-12-01", "unifocal", "unifocal"),
        ("2005-12-01", "unknown", "unifocal"),
    ],
)
def test_e47_one_focus_at_diagnosis_and_several_later(dates, at_diagnosis, ever):
    rows = "\n".join(
        f"{bone}|left|{day or 'none'}" for bone, day in zip(("tibia", "femur"), dates.split(", "), strict=False)
    )
    cohort = tell(site="bone|side|date\n" + rows)
    expect(cohort.tables["patients"], f"focality | focality_at_diagnosis\n{ever} | {at_diagnosis}")
