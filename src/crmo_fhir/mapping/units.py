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
SCORE_SCALES = {"mm": "mm", "cm": "cm", "%": "%"}


def convert(analyte: str, value: str | None, unit: str | None) -> tuple[float, str] | None:
    """The value in the canonical unit of its analyte, or None where the unit is missing or unknown to it.

    Scores carry no unit and stay on the scale they were given (0–10 and 0–100 are not mixed: a score in `mm` or `%`
    keeps that unit).
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
        return float(number), "{score}"
    return (float(number), SCORE_SCALES[unit]) if unit in SCORE_SCALES else None
