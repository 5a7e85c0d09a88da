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
def test_distinct_bone_and_side(sites, foci, focality):
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


def test_foci_and_children_with_a_focus_are_two_figures():
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
