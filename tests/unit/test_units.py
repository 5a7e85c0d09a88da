"""Units of blood values and scores: one canonical unit each, no scale taken for another, nothing impossible."""

import pytest

from crmo_fhir.mapping.units import convert, is_possible


@pytest.mark.parametrize(
    ("analyte", "value", "unit", "expected"),
    [
        ("crp", "1.2", "mg/dL", (12.0, "mg/L")),
        ("esr", "12", "mm", (12.0, "mm/h")),
        ("hb", "8", "mmol/L", (128.912, "g/L")),
        ("esr", "12", None, None),
        ("patient-global", "6.5", "{score}", (6.5, "{score}")),
        ("patient-global", "10", "", (10.0, "{score}")),
        ("patient-global", "10.1", "{score}", (10.1, "{score}/100")),
        ("physician-global", "65", None, (65.0, "{score}/100")),
        ("pain-vas", "8", "/100", (8.0, "{score}/100")),
        ("pain-severity", "65", "1", (65.0, "{score}/100")),
        ("pain-vas", "65", "mm", (65.0, "mm")),
        ("pain-vas", "6.5", "cm", (6.5, "cm")),
        ("pain-vas", "6.5", "flasks", None),
        ("pain-nrs", "65", "{score}", (65.0, "{score}")),
        ("rai-cromris", "17", "{score}", (17.0, "{score}")),
        ("lesion-count", "12", None, (12.0, "{score}")),
        ("lesion-count", "many", None, None),
        ("chaq", "NaN", None, None),
    ],
)
def test_a_value_is_brought_to_its_unit_or_refused(analyte, value, unit, expected):
    assert convert(analyte, value, unit) == expected


@pytest.mark.parametrize(
    ("value", "highest", "unit"),
    [
        ("8", None, "{score}"),
        ("8", 100, "{score}/100"),
        ("8", 10, "{score}"),
        ("65", 10, "{score}"),
        ("65", 4, "{score}"),
    ],
)
def test_the_reference_range_tells_the_scale_of_a_score_without_a_unit(value, highest, unit):
    assert convert("pain-vas", value, "{score}", highest) == (float(value), unit)
    assert convert("chaq", "2", "{score}", highest) == (2.0, "{score}")


@pytest.mark.parametrize(
    ("analyte", "value", "unit", "possible"),
    [
        ("pain-nrs", 10.0, "{score}", True),
        ("pain-nrs", 65.0, "{score}", False),
        ("pain-faces", 11.0, "{score}", False),
        ("chaq", 3.0, "{score}", True),
        ("chaq", 3.1, "{score}", False),
        ("patient-global", 100.0, "{score}/100", True),
        ("patient-global", 101.0, "{score}/100", False),
        ("pain-vas", 65.0, "{score}", False),
        ("pain-vas", 11.0, "cm", False),
        ("pain-vas", 100.0, "mm", True),
        ("lesion-count", 3.0, "{score}", True),
        ("lesion-count", 2.5, "{score}", False),
        ("clinical-lesion-count", 120.0, "{score}", True),
        ("rai-cromris", 40.0, "{score}", True),
        ("rinbo", -1.0, "{score}", False),
        ("esr", 140.0, "mm/h", True),
        ("crp", -2.0, "mg/L", False),
    ],
)
def test_a_value_beyond_its_scale_is_none(analyte, value, unit, possible):
    assert is_possible(analyte, value, unit) is possible
