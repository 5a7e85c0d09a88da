"""Units of blood values and scores: to one canonical UCUM unit each, or refused; nothing is mixed (promise 52)."""

from decimal import Decimal, InvalidOperation

CANONICAL: dict[str, tuple[str, dict[str, Decimal]]] = {
    "crp": ("mg/L", {"mg/L": Decimal(1), "mg/l": Decimal(1), "mg/dL": Decimal(10), "ug/mL": Decimal(1)}),
    "esr": ("mm/h", {"mm/h": Decimal(1), "mm": Decimal(1), "mm/hr": Decimal(1)}),
    "esr-2h": ("mm/(2.h)", {"mm/(2.h)": Decimal(1), "mm/2h": Decimal(1)}),
    "hb": ("g/L", {"g/L": Decimal(1), "g/dL": Decimal(10), "mmol/L": Decimal("16.114")}),
}
"""Analyte → canonical unit and the factor of each unit accepted. Haemoglobin: 1 mmol/L of the Fe monomer is 16.114 g/L."""

SCORE_UNITS = {"", "1", "{score}", "score"}
SCORE_SCALES = {"mm": "mm", "cm": "cm", "%": "%", "/100": "{score}/100", "{score}/100": "{score}/100"}
OF_100 = "{score}/100"
EITHER_SCALE = {"pain-vas", "pain-severity", "patient-global", "physician-global"}
"""Scores that are given on 0–10 or on 0–100; without a unit the reference range or a value above 10 tells."""
HIGHEST = {"pain-nrs": 10, "pain-faces": 10, "chaq": 3}
"""The end of the scale of the scores that have one only."""
COUNTS = {"lesion-count", "clinical-lesion-count"}
ENDS = {"{score}": 10, "cm": 10, "mm": 100, "%": 100, OF_100: 100}
"""The end of the scale of the scores that are given on either."""


def convert(
    analyte: str, value: str | None, unit: str | None, highest: float | None = None
) -> tuple[float, str] | None:
    """The value in the canonical unit of its analyte, or None where the unit is missing or unknown to it.

    Scores carry no unit and stay on the scale they were given (0–10 and 0–100 are not mixed: a score in `mm` or `%`
    keeps that unit, and one without a unit has the unit `{score}/100` where its scale ends at 100 (`highest`) or it is above 10).
    """
    try:
        number = Decimal(value or "")
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    if analyte in CANONICAL:
        canonical, factors = CANONICAL[analyte]
        factor = factors.get(unit or "")
        return None if factor is None else (float(number * factor), canonical)
    if (unit or "") in SCORE_UNITS:
        of_100 = highest == ENDS[OF_100] or (highest is None and number > ENDS["{score}"])
        return float(number), OF_100 if analyte in EITHER_SCALE and of_100 else "{score}"
    return (float(number), SCORE_SCALES[unit]) if unit in SCORE_SCALES else None


def is_possible(analyte: str, value: float, unit: str) -> bool:
    """Whether a canonical value is one its analyte can have: none below 0, none beyond its scale, no part of a lesion."""
    if analyte in COUNTS and not value.is_integer():
        return False
    highest = ENDS[unit] if analyte in EITHER_SCALE else HIGHEST.get(analyte) if unit == "{score}" else None
    return value >= 0 and (highest is None or value <= highest)
