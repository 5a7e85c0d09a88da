"""FHIR's partial dates as closed intervals of days (FHIR R4 datatypes: date, dateTime, instant).

`2005` is every day of 2005, `2005-03` every day of that March. An instant becomes the date it was in the study's time
zone. A test that the interval cannot decide is `None` (undetermined); the point estimate, the middle of the interval
(15th of the month, 1 July), stands only where a number is unavoidable.
"""

import calendar
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_INSTANT = re.compile(r"(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2})(?::(\d{2}))?(?:\.\d+)?(Z|[+-]\d{2}:\d{2})?")


@dataclass(frozen=True, order=True, slots=True)
class PartialDate:
    """The days a date may be: `low` to `high`, both included."""

    low: date
    high: date

    @property
    def exact(self) -> bool:
        """Whether only one day is possible."""
        return self.low == self.high

    @property
    def point(self) -> date:
        """The estimate used where one number is unavoidable: the day itself, the 15th of the month, or 1 July."""
        if self.exact:
            return self.low
        days = (self.high - self.low).days
        if self.low.day == 1 and days in (27, 28, 29, 30):
            return self.low.replace(day=15)
        if (self.low.month, self.low.day, self.high.month, self.high.day) == (1, 1, 12, 31) and days in (364, 365):
            return self.low.replace(month=7, day=1)
        return self.low + timedelta(days=days // 2)

    def at(self, estimate: str) -> date:
        """The day that stands for the date: its `middle` (the point estimate), `earliest` or `latest`."""
        return {"earliest": self.low, "latest": self.high}.get(estimate, self.point)

    def within(self, since: date | None, until: date | None) -> bool | None:
        """Whether the date lies in [since, until], both ends included; None where the interval cannot decide."""
        inside_low = since is None or self.low >= since
        inside_high = until is None or self.high <= until
        if inside_low and inside_high:
            return True
        if (since is not None and self.high < since) or (until is not None and self.low > until):
            return False
        return None


def parse_date(text: str | None, zone: ZoneInfo) -> PartialDate | None:
    """Read a FHIR date, dateTime or instant; None for absent or malformed text, and for years outside 1..9999.

    An instant without an offset is not valid FHIR but is found; it is read as local time of `zone`.
    """
    if not text:
        return None
    text = text.strip()
    try:
        if plain := _DATE.fullmatch(text):
            year, month, day = (int(part) if part else None for part in plain.groups())
            assert year is not None
            if month is None:
                return PartialDate(date(year, 1, 1), date(year, 12, 31))
            if day is None:
                return PartialDate(date(year, month, 1), date(year, month, calendar.monthrange(year, month)[1]))
            return PartialDate(date(year, month, day), date(year, month, day))
        if instant := _INSTANT.fullmatch(text):
            day_text, minute, second, offset = instant.groups()
            second = "59" if second == "60" else second or "00"  # a leap second is on the same day
            stamp = datetime.fromisoformat(f"{day_text}T{minute}:{second}{(offset or '').replace('Z', '+00:00')}")
            local = stamp.astimezone(zone).date() if offset else stamp.date()
            return PartialDate(local, local)
    except (ValueError, OverflowError):
        return None
    return None


def earliest(dates: list[PartialDate]) -> PartialDate:
    """The interval in which the earliest of several partial dates lies (`dates` is not empty)."""
    return PartialDate(min(d.low for d in dates), min(d.high for d in dates))


def birthday(birth: date, years: int) -> date:
    """The day on which someone born on `birth` completes `years` years (29 February counts as 1 March)."""
    try:
        return birth.replace(year=birth.year + years)
    except ValueError:
        return date(birth.year + years, 3, 1)


def add_months(day: date, months: int) -> date:
    """The same day `months` later, or the last day of a shorter month."""
    years, month = divmod(day.month - 1 + months, 12)
    year = day.year + years
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))
