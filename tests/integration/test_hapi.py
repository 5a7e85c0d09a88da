"""The main job from a real FHIR server: the same bytes as from the folder."""

import pytest
from support import OUTPUTS, PRINTED

pytestmark = pytest.mark.hapi


def test_served_and_folder_give_the_same_bytes(hapi, demo_study, crmo, tmp_path, monkeypatch):
    study = tmp_path / "study"
    monkeypatch.setenv("CRMO_FHIR_SERVER", hapi)
    ran = crmo("extract", "--since", "2002", "--until", "2011", "-o", study)
    assert ran.code == 0, ran.err
    assert crmo("measure", study, "--published", PRINTED).code == 0
    for name in OUTPUTS:
        assert (study / name).read_bytes() == (demo_study / name).read_bytes(), name


def test_served_and_folder_lose_the_same_candidates(hapi, demo_study, crmo, tmp_path):
    study = tmp_path / "study"
    assert crmo("extract", hapi, "--since", "2002", "--until", "2011", "-o", study).code == 0
    served, read = ((s / "cohort" / "attrition.csv").read_text() for s in (study, demo_study))
    assert served == read
