"""Disclosure control: which counts of a study may leave the hospital (clinical rules §6).

A release is read by somebody who knows how the figures hang together: strata sum to their group, n is part of N, lines
reached follow from lines ended, and so on (`_relate`). All that is published, in whatever file, is a count of the result
rows or made from some of them, and is shown only where all of them are. So the question is which counts to hold back.

* A count of 1 to threshold - 1 is sensitive, and so is the rest of every "a is part of b" (18 of 20 tells of the other 2).
* A count that is held back, and the rest that is not printed, is safe where all that is shown leaves it a range of at
  least the threshold between the least and the greatest value it can have.
* Of all safe choices the one that loses least is taken: cell suppression as Fischetti & Salazar put it (2001, Manage Sci
  47:1008), a master problem over the choice, and cuts from the linear programs of the reader. At the end the ranges hold for
  whole numbers too.

An earlier release is part of what the reader knows: both are one system, and a count that differs by 1 to threshold - 1
from the earlier one is as sensitive as such a count itself. The reader may also believe that cohorts only grow.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from crmo_fhir.errors import PrivacyError
from crmo_fhir.export.table1 import TREATMENT_GROUPS
from crmo_fhir.model.results import MASKED, Result
from crmo_fhir.model.study import Disclosure

if TYPE_CHECKING:
    import numpy as np

Key = tuple[str, ...]
"""A count: group, stratifier, stratum, and `n` or `N`; or a made-up name for one that no row holds."""
Interval = Callable[[int, int], tuple[float, float]]

UNKNOWN = "unknown"
CUTS = ("agent", "line", "sex", "focality", "sapho")
UNRELEASED = ("-judged", "-reviewed", "-judged-or-reviewed", "-derived", "-best-ever", "-6-months")
"""Second readings that no release has: each counts the same few courses in another way, and what two of them differ by would
tell of single ones. What cannot be protected is left out, as the attrition is."""
OF_CHILDREN = ("sex", "focality", "sapho")
"""The cuts of a treatment group by what the child is, which the cohort is cut by too."""
KEPT_NOTES = ("from orders",)
"""Notes that say how a figure came about, not how large it is: a masked row keeps them."""
WEIGHTS = {"treatment": 100.0, "overall": 60.0, "cohort": 12.0, "stratum": 4.0, "reading": 2.0}
"""What the loss of a row costs; of each single count a tenth of that."""
NODES = 5000
"""Most nodes of one search, so that it ends; no limit of time, so that it ends alike on every machine."""
ROUNDS = 400
LEAN = 1e-5
"""How little it counts to have some of what others need, so that solutions are whole numbers more often."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release made before: the figures as counted, the rows as released, how, and on which day."""

    results: tuple[Result, ...]
    released: tuple[Result, ...]
    disclosure: Disclosure
    day: str


def filter_results(
    results: Sequence[Result], disclosure: Disclosure, interval: Interval, earlier: Sequence[Release] = ()
) -> list[Result]:
    """The rows as they may be released: masked counts None, the others rounded where `disclosure` says so.

    Readings of the effect by another source or at another time (`UNRELEASED`) are left out. `interval` gives the limits of n of N. The same figures are released as they were before. Raises PrivacyError where no
    figure worth showing is safe.
    """
    results = _releasable(results)
    earlier = [replace(one, results=tuple(_releasable(one.results))) for one in earlier]
    hidden = _hidden_before(results, disclosure, earlier)
    if hidden is None:
        hidden = choose_hidden(results, disclosure, earlier)
    released = [_released(row, hidden, disclosure.rounding, interval) for row in results]
    _refuse_useless(results, released, disclosure, earlier)
    return released


def _releasable(results: Iterable[Result]) -> list[Result]:
    return [row for row in results if not row.group.endswith(UNRELEASED)]


def _hidden_before(results: Sequence[Result], disclosure: Disclosure, earlier: Sequence[Release]) -> set[Key] | None:
    """What was held back when these very figures were released before; None where they were not."""
    for one in earlier:
        if _by_key(one.results) == _by_key(results):
            if one.disclosure != disclosure:
                raise PrivacyError(
                    f"these figures were released on {one.day}, and masked another way they would tell what that release "
                    f"holds back; use --threshold {one.disclosure.threshold} --rounding {one.disclosure.rounding}"
                )
            return {key for key, count in _by_key(one.released).items() if count is None}
    return None


def _by_key(rows: Iterable[Result]) -> dict[Key, int | None]:
    return {(*_name(row), of): count for row in rows for of, count in (("n", row.n), ("N", row.N))}


def count_shown(released: Iterable[Result]) -> tuple[int, int]:
    """How many of the counts of these rows are shown, and how many there are."""
    counts = [count for row in released for count in (row.n, row.N)]
    return sum(count is not None for count in counts), len(counts)


def filter_published(
    printed: Sequence[Mapping[str, str]], released: Sequence[Result], disclosure: Disclosure
) -> list[dict[str, str]]:
    """The rows of a published comparison that tell nothing of what is masked: their figure is shown in full and exact.

    Their notes are free text, which may name any figure, and are left out.
    """
    if disclosure.rounding:
        return []
    rows = {(row.group, row.stratifier, row.stratum): row for row in released}
    kept = []
    for one in printed:
        row = rows.get((one.get("group", ""), one.get("stratifier", ""), one.get("stratum", "")))
        if row is not None and not row.masked:
            kept.append({name: "" if name.startswith("note") else text for name, text in one.items()})
    return kept


def _released(row: Result, hidden: set[Key], base: int, interval: Interval) -> Result:
    n, whole = (None if (*_name(row), of) in hidden else _rounded(count, base) for of, count in _counts(row))
    if n is None or whole is None:
        note = "; ".join([MASKED, *(note for note in KEPT_NOTES if note == row.note)])
        return replace(row, n=n, N=whole, proportion=None, ci_low=None, ci_high=None, ci_method="", note=note)
    if not base or row.proportion is None:
        return replace(row, n=n, N=whole)
    if not whole:
        return replace(row, n=n, N=whole, proportion=None, ci_low=None, ci_high=None, ci_method="")
    low, high = interval(n, whole) if row.ci_low is not None else (None, None)
    return replace(row, n=n, N=whole, proportion=n / whole, ci_low=low, ci_high=high)


def _rounded(count: int, base: int) -> int:
    """To the nearest multiple of the base, halves up."""
    return (2 * count + base) // (2 * base) * base if base else count


def _refuse_useless(
    results: Sequence[Result], released: Sequence[Result], disclosure: Disclosure, earlier: Sequence[Release]
) -> None:
    """Raise PrivacyError where a release would hold nothing to read, or nothing new."""
    counts = {count for row in released for count in (row.n, row.N)}
    if None in counts and not any(count and count >= disclosure.threshold for count in counts):
        raise PrivacyError(
            f"no figure can be shown: with a threshold of {disclosure.threshold} every count is too small or gives a small "
            "one away; release when there are more children"
        )
    exact, visible = _by_key(results), {key for key, count in _by_key(released).items() if count is not None}
    for one in earlier:
        before = _by_key(one.results)
        if before != exact and all(before.get(key, 0) == exact[key] for key in visible):
            raise PrivacyError(
                f"the figures differ too little from those of the release of {one.day}: the two together would tell of only "
                "a few children; release again when more have been added"
            )


def _name(row: Result) -> Key:
    return row.group, row.stratifier, row.stratum


def _counts(row: Result) -> tuple[tuple[str, int], tuple[str, int]]:
    if row.n is None or row.N is None:
        raise ValueError("a row to be released has all its counts")
    return ("n", row.n), ("N", row.N)


# ---- what a reader knows: how the counts hang together ----


@dataclass(slots=True)
class _Known:
    """The relations of one set of rows: counts that are one and the same, and linear relations between them.

    `parts` are "part + rest = whole" with the rest a count to be protected, `bounds` are "sum of coefficient x count >= 0",
    `needs` are "where the other is none, this one is none". `leaning` are those that solutions should rather have many of.
    """

    same_as: dict[Key, Key] = field(default_factory=dict)
    values: dict[Key, int] = field(default_factory=dict)
    sums: list[tuple[Key, tuple[Key, ...]]] = field(default_factory=list)
    parts: list[tuple[Key, Key]] = field(default_factory=list)
    bounds: list[dict[Key, int]] = field(default_factory=list)
    needs: list[tuple[Key, Key]] = field(default_factory=list)
    leaning: list[Key] = field(default_factory=list)
    at_least_one: list[Key] = field(default_factory=list)

    def root(self, key: Key) -> Key:
        """The name under which a count stands for all that are the same."""
        while key in self.same_as:
            key = self.same_as[key]
        return key

    def same(self, one: Key, other: Key) -> None:
        """Two names of one count."""
        one, other = self.root(one), self.root(other)
        if one != other:
            self.same_as[one] = other

    def part(self, part: Key, whole: Key) -> None:
        """One count is part of another, and what it leaves is a count too."""
        self.parts.append((part, whole))

    def total(self, whole: Key, parts: Iterable[Key]) -> None:
        """A count is the sum of others."""
        self.sums.append((whole, tuple(parts)))

    def bound(self, greater: Iterable[Key], less: Iterable[Key]) -> None:
        """Some counts together are at least others together."""
        terms: dict[Key, int] = defaultdict(int)
        for key in greater:
            terms[key] += 1
        for key in less:
            terms[key] -= 1
        self.bounds.append(dict(terms))


def _relate(results: Sequence[Result]) -> _Known:
    """Everything that is true of every cohort, as the metrics count it."""
    known = _Known()
    rows = {_name(row): row for row in results}
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (group, stratifier, stratum), row in rows.items():
        for of, count in _counts(row):
            known.values[group, stratifier, stratum, of] = count
        if stratifier:
            strata[group, stratifier].append(stratum)
        elif _is_count(group):
            known.same(_n(group), _whole(group))
    for name in rows:
        if name[1] or not _is_count(name[0]):
            known.part(_n(*name), _whole(*name))
    cohort, foci, lines = _n("cohort"), _n("foci"), _n("tnfi-lines")
    for (group, stratifier), values in strata.items():
        if group in ("cohort", "foci", "tnfi-lines"):
            whole = cohort if stratifier == "bone-patients" else _n(group)
            for value in values:
                known.same(_whole(group, stratifier, value), whole)
            if stratifier not in ("bone-patients", "line-reached"):
                known.total(whole, [_n(group, stratifier, value) for value in values])
        else:
            for count_of in (_n, _whole):
                known.total(count_of(group), [count_of(group, stratifier, value) for value in values])
    if ("cohort", "sapho", "yes") in rows:
        known.part(_n("cohort", "sapho-at-diagnosis", "yes"), _n("cohort", "sapho", "yes"))
        known.part(_n("cohort", "sapho", "no"), _n("cohort", "sapho-at-diagnosis", "no"))
    _relate_foci(known, strata, foci)
    _relate_lines(known, strata, lines)
    for group in TREATMENT_GROUPS:
        if _n(f"{group}-treated") in known.values:
            _relate_readings(known, group)
    if _n("nsaid-clinical-treated") in known.values:
        _relate_nsaid(known, strata)
    for treated in (_n("nsaid-clinical-treated"), _n("mtx-clinical-treated"), lines):
        if treated in known.values:
            known.part(treated, cohort)
    _relate_treated(known, strata)
    if _whole("tnfi-clinical-patients") in known.values:
        _relate_children_and_courses(known, lines)
    return known


def _is_count(group: str) -> bool:
    return group in ("cohort", "foci", "tnfi-lines") or group.endswith("-treated")


def _relate_foci(known: _Known, strata: Mapping[tuple[str, str], list[str]], foci: Key) -> None:
    """A bone has one or two sides; a child with several foci has at least two, one with one has that."""
    bones = strata.get(("foci", "bone"), [])
    one, several = (_n("cohort", "focality", value) for value in ("unifocal", "multifocal"))
    if one not in known.values:
        return
    children = [_n("foci", "bone-patients", bone) for bone in bones]
    for bone, child in zip(bones, children, strict=True):
        own = _n("foci", "bone", bone)
        known.at_least_one.append(child)  # a bone has a row because somebody has a focus there
        known.leaning.append(child)
        known.part(child, own)
        both = _rest(child, own)
        known.values[both] = known.values[own] - known.values[child]
        known.part(both, child)
        known.part(both, several)
        known.bound([one, several], [child])
    if not bones:
        known.total(foci, [])
    known.part(one, foci)
    known.bound([foci], [one, several, several])
    known.bound(children, [one, several])


def _relate_lines(known: _Known, strata: Mapping[tuple[str, str], list[str]], lines: Key) -> None:
    """Who ended at a line reached it, and so did all who ended later."""
    numbers = strata.get(("tnfi-lines", "line-ended"), [])
    if not numbers:
        return
    for number, later in zip(numbers, [*numbers[1:], ""], strict=True):
        reached, ended = (_n("tnfi-lines", key, number) for key in ("line-reached", "line-ended"))
        if later:
            known.total(reached, [ended, _n("tnfi-lines", "line-reached", later)])
        else:
            known.same(reached, ended)
    known.same(_n("tnfi-lines", "line-reached", numbers[0]), lines)
    if int(numbers[-1]) > 3:  # three lines are always listed, a fourth because somebody reached it
        known.at_least_one.append(_n("tnfi-lines", "line-ended", numbers[-1]))


def _relate_readings(known: _Known, group: str) -> None:
    """Treated = evaluable + not evaluable; worst and best case and intention to treat are made of these."""
    treated, unjudged = _n(f"{group}-treated"), _n(f"{group}-not-evaluable")
    known.same(_whole(f"{group}-not-evaluable"), treated)
    judged = _whole(group)
    if group == "nsaid-clinical":  # whose N is the cohort
        judged = (group, "judged")
        known.values[judged] = known.values[treated] - known.values[unjudged]
        known.part(_n(group), judged)
    known.total(treated, [judged, unjudged])
    if _whole(f"{group}-worst-case") not in known.values:
        return
    for reading in ("worst-case", "best-case"):
        known.same(_whole(f"{group}-{reading}"), treated)
    for reading in ("worst-case", "itt"):
        known.same(_n(f"{group}-{reading}"), _n(group))
    known.total(_n(f"{group}-best-case"), [_n(group), unjudged])
    failed = (group, "failed unjudged")
    known.values[failed] = known.values[_whole(f"{group}-itt")] - known.values[judged]
    known.total(_whole(f"{group}-itt"), [judged, failed])
    known.part(failed, unjudged)


def _relate_nsaid(known: _Known, strata: Mapping[tuple[str, str], list[str]]) -> None:
    """The NSAID group has the whole cohort in it; its other reading those who were treated."""
    group, exposed, treated = "nsaid-clinical", "nsaid-clinical-exposed", _n("nsaid-clinical-treated")
    known.same(_whole(group), _n("cohort"))
    known.same(_whole(exposed), treated)
    known.same(_n(exposed), _n(group))
    untreated = False
    for stratifier in CUTS:
        for value in strata.get((group, stratifier), []):
            own, other = (group, stratifier, value), (exposed, stratifier, value)
            if stratifier in OF_CHILDREN:
                known.same(_whole(*own), _n("cohort", stratifier, value))
                known.same(_n(*own), _n(*other))
                known.part(_whole(*other), _whole(*own))
            elif value == "none":
                untreated = True
                known.part(treated, _n("cohort"))
                known.values[_rest(treated, _n("cohort"))] = known.values[_whole(*own)]
                known.same(_whole(*own), _rest(treated, _n("cohort")))
                known.at_least_one.append(_whole(*own))
                known.total(_n(*own), [])
            else:
                known.same(_n(*own), _n(*other))
                known.same(_whole(*own), _whole(*other))
                known.at_least_one.append(_whole(*own))
    if not untreated:  # the row would be there
        known.same(treated, _n("cohort"))


def _relate_treated(known: _Known, strata: Mapping[tuple[str, str], list[str]]) -> None:
    """The treated of each stratum, whom no row counts: judged are some of them, children some of their stratum."""
    lines = _n("tnfi-lines")
    for group, everybody, children in (
        ("mtx-clinical", _n("mtx-clinical-treated"), _n("mtx-clinical-treated")),
        ("mtx-mri", _n("mtx-mri-treated"), _n("mtx-clinical-treated")),
        ("tnfi-clinical", _n("tnfi-clinical-treated"), lines),
        ("tnfi-mri", _n("tnfi-clinical-treated"), lines),
    ):
        if everybody not in known.values or _n(f"{group}-treated") not in known.values:
            continue
        known.same(_n(f"{group}-treated"), everybody)
        if everybody != children:
            known.part(children, everybody)
            known.needs.append((everybody, children))
        for stratifier in CUTS:
            values = strata.get((group, stratifier), [])
            own = {value: (*everybody[:1], stratifier, value, "treated") for value in values}
            if values or (group, "sex") in strata:  # no agent, nobody treated
                known.total(everybody, own.values())
            for value, treated in own.items():
                known.bound([treated], [_whole(group, stratifier, value)])
                if stratifier in OF_CHILDREN:
                    whole = _n("cohort", stratifier, value)
                    child = (*children[:1], stratifier, value, "treated")
                    known.bound([whole], [child])
                    if child != treated:
                        known.bound([treated], [child])
                        known.needs.append((treated, child))
                    if group == "mtx-clinical":
                        known.part(_whole(group, stratifier, value), whole)
                else:
                    if value != UNKNOWN:  # which has a row whether anybody is in it or not
                        known.at_least_one.append(treated)
                    reached = _n("tnfi-lines", "line-reached", value)
                    if children == lines and stratifier == "line" and reached in known.values:
                        # a course whose agent is not known may be of any line
                        known.bound([treated, *(own[UNKNOWN] for _ in range(UNKNOWN in own))], [reached])
            if stratifier in OF_CHILDREN and values and everybody != children:
                known.total(children, [(*children[:1], stratifier, value, "treated") for value in values])


def _relate_children_and_courses(known: _Known, lines: Key) -> None:
    """A child is judged, or has an effect, by at least one of its courses; so is one that is not judged, or has none."""
    group, children = "tnfi-clinical", "tnfi-clinical-patients"
    treated = _n(f"{group}-treated")
    known.part(_whole(children), lines)
    for of in (_n, _whole):
        known.part(of(children), of(group))
        known.needs.append((of(group), of(children)))
    known.bound([_whole(group), _n(children)], [_n(group), _whole(children)])
    known.bound([treated, _whole(children)], [_whole(group), lines])


def _n(group: str, stratifier: str = "", stratum: str = "") -> Key:
    return group, stratifier, stratum, "n"


def _whole(group: str, stratifier: str = "", stratum: str = "") -> Key:
    return group, stratifier, stratum, "N"


def _rest(part: Key, whole: Key) -> Key:
    return ("rest", *part, *whole)


# ---- what a reader can find out, and the choice of what to hide ----


def choose_hidden(results: Sequence[Result], disclosure: Disclosure, earlier: Sequence[Release] = ()) -> set[Key]:
    """The counts to hold back: (group, stratifier, stratum, `n` or `N`).

    Raises PrivacyError where no choice is safe.
    """
    reader = _Reader(results, disclosure, earlier)
    choice = _Choice(reader, results)
    for _ in range(ROUNDS):
        hidden = choice.find()
        cuts = reader.find_cuts(hidden)
        if not cuts:
            return reader.keys_of(hidden)
        choice.add(cuts)
    raise PrivacyError("no safe choice of figures was found; take a larger threshold or a rounding base")


@dataclass(frozen=True, slots=True)
class _Protected:
    """A quantity that must stay uncertain by `width` (for a count of this release: where it is hidden)."""

    variable: int
    width: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """Of hidden counts enough: sum of coefficient x (hidden or not) >= least."""

    terms: Mapping[int, float]
    least: float


class _Reader:
    """The linear system of all that is known of the counts, and what can be concluded from it for a choice of the hidden.

    Variables are the counts of this release and of the earlier ones, each once, with the made-up ones. `true` is a solution;
    `shown` and `hidden` are the ranges of each variable for a reader, where it is shown and where it is not.
    """

    def __init__(self, results: Sequence[Result], disclosure: Disclosure, earlier: Sequence[Release]) -> None:
        self.width, self.exact = disclosure.threshold, disclosure.rounding <= 1
        self._index: dict[Key, int] = {}
        self._rows: list[dict[int, float]] = []
        self._bounds: list[tuple[float, float]] = []
        self._shown: dict[int, tuple[float, float]] = {}
        self._values: dict[int, int] = {}
        self._lean: dict[int, float] = {}
        self._points: list[np.ndarray[Any, Any]] = []
        self._seen: dict[tuple[int, ...], list[_Cut]] = {}
        self.protected: list[_Protected] = []
        self.must_hide: set[int] = set()
        counts = [count for rows in (results, *(e.results for e in earlier)) for r in rows for _, count in _counts(r)]
        self._most = 2.0 * max(counts, default=0) + 10 * self.width
        known = _relate(results)
        self._take("", known)
        self.maskable = {
            self._place("", known, key): None
            for row in results
            for of, _ in _counts(row)
            for key in [(*_name(row), of)]
        }
        self._cells = {(*_name(row), of): self._place("", known, (*_name(row), of)) for row in results for of in "nN"}
        for variable in self.maskable:
            self._shown[variable] = self._as_shown(self._values[variable], disclosure)
            self.protected.append(_Protected(variable, self.width))
        self._protect_rests("", known, self.width)
        for number, one in enumerate(earlier):
            self._take_earlier(f"earlier {number}", one, known)
        self._of: dict[int, list[_Protected]] = defaultdict(list)
        for protected in self.protected:
            self._of[protected.variable].append(protected)
        self._solve_true()

    # -- building --

    def _place(self, of: str, known: _Known, key: Key) -> int:
        return self._variable((of, *known.root(key)))

    def _variable(self, key: Key, low: float = 0.0, high: float | None = None) -> int:
        if key not in self._index:
            self._index[key] = len(self._index)
            self._bounds.append((low, self._most if high is None else high))
        return self._index[key]

    def _row(self, terms: Iterable[tuple[int, float]]) -> None:
        row: dict[int, float] = defaultdict(float)
        for variable, coefficient in terms:
            row[variable] += coefficient
        row = {variable: coefficient for variable, coefficient in row.items() if coefficient}
        if row and row not in self._rows:
            self._rows.append(row)

    def _take(self, of: str, known: _Known) -> None:
        """Add the relations of one set of rows."""
        for key, value in known.values.items():
            self._values[self._place(of, known, key)] = value
        for part, whole in known.parts:
            rest = self._place(of, known, _rest(part, whole))
            if part in known.values and whole in known.values:
                self._values[rest] = known.values[whole] - known.values[part]
            one, other = self._place(of, known, part), self._place(of, known, whole)
            self._row([(one, 1.0), (rest, 1.0), (other, -1.0)])
        for whole, parts in known.sums:
            self._row([*((self._place(of, known, part), 1.0) for part in parts), (self._place(of, known, whole), -1.0)])
        for terms in known.bounds:
            self._at_least(of, [(self._place(of, known, key), float(times)) for key, times in terms.items()])
        for one_key, other_key in known.needs:
            other, one = self._place(of, known, other_key), self._place(of, known, one_key)
            any_of_it = self._variable((of, "some", *known.root(other_key)), high=1.0)
            self._at_least(of, [(other, 1.0), (any_of_it, -1.0)])
            self._at_least(of, [(any_of_it, self._most), (one, -1.0)])
            self._lean[any_of_it] = -LEAN
        for key in known.leaning:
            self._lean[self._place(of, known, key)] = -LEAN
        some = {known.root(key) for key in known.at_least_one}
        some |= {known.root(whole) for part, whole in known.needs if known.root(part) in some}
        for key in sorted(some):
            variable = self._variable((of, *key))
            self._bounds[variable] = (1.0, self._bounds[variable][1])

    def _at_least(self, of: str, terms: list[tuple[int, float]]) -> None:
        surplus = self._variable((of, "surplus", str(len(self._rows))), high=float("inf"))
        self._row([*terms, (surplus, -1.0)])

    def _as_shown(self, value: int, disclosure: Disclosure) -> tuple[float, float]:
        """What a shown count can be: itself; where it is rounded, anything that gives it and may be shown."""
        base = disclosure.rounding
        if not base or not value:
            return float(value), float(value)
        shown = _rounded(value, base)
        low = max(disclosure.threshold, shown - base // 2)
        return float(min(low, value)), float(max(shown + (base - 1) // 2, value))

    def _protect_rests(self, of: str, known: _Known, width: int) -> None:
        for part, whole in known.parts:
            rest = self._place(of, known, _rest(part, whole))
            if 0 < self._values.get(rest, 0) < width:
                self.protected.append(_Protected(rest, width))

    def _take_earlier(self, of: str, one: Release, now: _Known) -> None:
        """Add an earlier release: what it showed, what it hid, and how far this one may be told from it."""
        known = _relate(one.results)
        self._take(of, known)
        visible, width = set(), one.disclosure.threshold
        for exact, released in zip(one.results, one.released, strict=True):
            for (column, value), count in zip(_counts(exact), (released.n, released.N), strict=True):
                variable = self._place(of, known, (*_name(exact), column))
                if count is not None:
                    visible.add(variable)
                    self._bounds[variable] = self._as_shown(value, one.disclosure)
        cells = {self._place(of, known, key): None for key in _by_key(one.results)}
        self.protected += [_Protected(variable, width) for variable in cells if variable not in visible]
        self._protect_rests(of, known, width)
        pairs: dict[tuple[int, int], None] = {}
        for key in (*known.values, *(_rest(*part) for part in known.parts)):
            before, after = self._index.get((of, *known.root(key))), self._index.get(("", *now.root(key)))
            if before in self._values and after in self._values:
                pairs[before, after] = None
        for before, after in pairs:
            self._compare(before, after)

    def _compare(self, before: int, after: int) -> None:
        """A count of an earlier release and of this one: the difference is protected, and may be known to be no fall."""
        difference = self._values[after] - self._values[before]
        low, high = self._bounds[before]
        sensitive = 0 < abs(difference) < self.width
        if low == high and after in self.maskable:  # known before: what is known of this one is known of the difference
            if sensitive:
                self.must_hide.add(after)
            if difference >= 0:
                self._bounds[after] = (max(self._bounds[after][0], low), self._bounds[after][1])
        elif difference >= 0 or sensitive:
            more = self._variable(("more", str(before), str(after)), low=-self._most if difference < 0 else 0.0)
            self._values[more] = difference
            self._row([(after, 1.0), (before, -1.0), (more, -1.0)])
            if sensitive:
                self.protected.append(_Protected(more, self.width))

    def _solve_true(self) -> None:
        """Complete what is counted with values for the made-up counts, so that all relations hold."""
        import numpy as np
        from scipy.sparse import csr_array

        size = len(self._index)
        entries = [(r, v, c) for r, row in enumerate(self._rows) for v, c in row.items()]
        rows, columns, data = zip(*entries, strict=True) if entries else ((), (), ())
        self.matrix = csr_array((data, (rows, columns)), shape=(len(self._rows), size), dtype=float)
        low, high = np.array(self._bounds, dtype=float).reshape(size, 2).T
        self.low, self.high = low, high
        fixed_low, fixed_high = low.copy(), high.copy()
        for variable, value in self._values.items():
            fixed_low[variable] = fixed_high[variable] = value
        found = search(self.matrix, np.zeros(len(self._rows)), np.zeros(size), fixed_low, fixed_high)
        if found is None:
            raise ValueError("the results contradict the relations of their counts")
        self.true = found
        self.shown_low, self.shown_high = low.copy(), high.copy()
        for variable, (least, most) in self._shown.items():
            self.shown_low[variable], self.shown_high[variable] = least, most

    # -- reading --

    def is_sensitive(self, variable: int) -> bool:
        """Whether a count of this release must be hidden."""
        return variable in self.must_hide or 0 < self._values[variable] < self.width

    def keys_of(self, hidden: set[int]) -> set[Key]:
        """The names of these variables."""
        return {key for key, variable in self._cells.items() if variable in hidden}

    def variable_of(self, key: Key) -> int:
        """The variable of a count of this release."""
        return self._cells[key]

    def rows(self) -> Iterable[Mapping[int, float]]:
        """The relations."""
        return self._rows

    def is_open(self, variable: int) -> bool:
        """Whether nothing is asked of a variable, and it is never shown."""
        return variable not in self.maskable and variable not in self._of

    def find_cuts(self, hidden: set[int]) -> list[_Cut]:
        """What is wrong with this choice; nothing where every protected quantity stays uncertain.

        What is shown and exact cuts the system into parts that have nothing to do with each other; one that was looked at
        before, with the same counts open, is not looked at again.
        """
        import numpy as np
        from scipy.sparse.csgraph import connected_components

        low, high = self.low.copy(), self.high.copy()
        for variable in self.maskable:
            if variable not in hidden:
                low[variable], high[variable] = self.shown_low[variable], self.shown_high[variable]
        free = np.flatnonzero(high > low)
        touching = abs(self.matrix[:, free])
        _, label = connected_components(touching.T @ touching, directed=False)
        parts: dict[int, list[int]] = defaultdict(list)
        for variable, part in zip(free.tolist(), label.tolist(), strict=True):
            parts[part].append(variable)
        cuts = [
            self._another(p, hidden, self.maskable)
            for p in self.protected
            if p.variable not in self.maskable and not high[p.variable] > low[p.variable]
        ]
        for variables in parts.values():
            key = (*variables, *(-1 - variable for variable in variables if variable in hidden))
            if key not in self._seen:
                self._seen[key] = self._look(variables, low, high, hidden)
            cuts += self._seen[key]
        return cuts

    def _look(
        self, variables: list[int], low: "np.ndarray[Any, Any]", high: "np.ndarray[Any, Any]", hidden: set[int]
    ) -> list[_Cut]:
        """The same for one part of the system."""
        import numpy as np

        asked = [p for v in variables if v not in self.maskable or v in hidden for p in self._of.get(v, ())]
        if not asked:
            return []
        relations = np.flatnonzero(np.diff(self.matrix[:, variables].indptr))
        matrix = self.matrix[relations][:, variables]
        lean = np.array([self._lean.get(variable, 0.0) for variable in variables])
        part = _Part(matrix, low[variables], high[variables], self.true[variables], lean)
        for point in self._points:
            if np.all(point >= low - 1e-9) and np.all(point <= high + 1e-9):
                part.take(point[variables])
        around = set(self.matrix[relations].indices.tolist()) & set(self.maskable) - hidden
        place = {variable: number for number, variable in enumerate(variables)}
        part.move({place[protected.variable]: protected.width for protected in asked})
        cuts = []
        for protected in asked:
            q = place[protected.variable]
            ends = part.find_ends(q, protected.width)
            if ends is None:
                continue
            if sum(end.distance for end in ends) < protected.width - 1e-6:
                marginals = np.zeros((2, self.matrix.shape[0]))
                marginals[:, relations] = [end.marginals for end in ends]
                reduced = -(self.matrix.T @ marginals.T).T
                reduced[:, protected.variable] += (1.0, -1.0)
                cuts.append(self._cut(protected, reduced, hidden, around))
            else:
                cuts.append(self._another(protected, hidden, around))
        for found in part.points:
            self._points.append(self.true.copy())
            self._points[-1][variables] = found
        return cuts

    def _cut(
        self, protected: _Protected, reduced: "np.ndarray[Any, Any]", hidden: set[int], around: Iterable[int]
    ) -> _Cut:
        """Why the range is too narrow, as the counts that could widen it (linear programming duality)."""
        import numpy as np

        up = np.maximum(-reduced, 0.0).sum(axis=0)  # by how much a higher upper end of each range widens this one
        down = np.maximum(reduced, 0.0).sum(axis=0)
        up[up < 1e-9] = 0.0
        down[down < 1e-9] = 0.0

        def widened(low: "np.ndarray[Any, Any]", high: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
            above = np.where(np.isfinite(high), high - self.true, 0.0)
            return np.asarray(up * above + down * (self.true - low))

        as_shown, as_hidden = widened(self.shown_low, self.shown_high), widened(self.low, self.high)
        q = protected.variable
        own = q in self.maskable
        base = float(as_shown.sum()) + (float(as_hidden[q] - as_shown[q]) if own else 0.0)
        need = protected.width - base
        gains = as_hidden - as_shown
        terms = {v: min(float(gains[v]), need) for v in self.maskable if v != q and gains[v] > 1e-9}
        if need <= 1e-6 or sum(terms.get(v, 0.0) for v in hidden) >= need - 1e-7:
            return self._another(protected, hidden, around)
        if own:
            return _Cut({**terms, q: -need}, 0.0)
        return _Cut(terms, need)

    def _another(self, protected: _Protected, hidden: set[int], around: Iterable[int]) -> _Cut:
        """This choice is not safe; of the counts around that are shown another one must be hidden."""
        terms = {v: 1.0 for v in around if v not in hidden}
        if protected.variable in self.maskable and not self.is_sensitive(protected.variable):
            return _Cut({**terms, protected.variable: -1.0}, 0.0)
        return _Cut(terms, 1.0)


@dataclass(frozen=True, slots=True)
class _End:
    """How far from the truth a variable can be on one side, and what each relation has to do with it."""

    distance: float
    marginals: "np.ndarray[Any, Any]"


class _Part:
    """A part of the system in which nothing of the rest matters: `matrix` x = `matrix` `true`, `low` <= x <= `high`.

    `points` are the solutions in whole numbers that were found; each may show many variables uncertain.
    """

    def __init__(
        self,
        matrix: Any,
        low: "np.ndarray[Any, Any]",
        high: "np.ndarray[Any, Any]",
        true: "np.ndarray[Any, Any]",
        lean: "np.ndarray[Any, Any]",
    ) -> None:
        self._matrix, self._low, self._high, self._true, self._lean = matrix, low, high, true, lean
        self._sides = matrix @ true
        self._least, self._most = true.copy(), true.copy()
        self.points: list[np.ndarray[Any, Any]] = []

    def take(self, point: "np.ndarray[Any, Any]") -> None:
        """Learn from a solution."""
        import numpy as np

        np.minimum(self._least, point, out=self._least)
        np.maximum(self._most, point, out=self._most)

    def move(self, asked: Mapping[int, int]) -> None:
        """Find solutions where many of these variables are far apart at once, as long as that settles some of them.

        `asked` holds the width each needs. The directions are drawn, from the same seed on every machine.
        """
        import numpy as np

        draw = np.random.default_rng(0)
        left = list(asked)
        while len(left) > 2:
            signs = draw.choice((-1.0, 1.0), len(left))
            for side in (1.0, -1.0):
                self._go(dict(zip(left, signs * side, strict=True)))
            unsettled = [v for v in left if self._most[v] - self._least[v] < asked[v]]
            if len(unsettled) > 0.9 * len(left):
                return
            left = unsettled

    def find_ends(self, variable: int, width: int) -> tuple[_End, _End] | None:
        """None where whole numbers that agree with all that is known lie so far apart; else both ends without whole numbers."""
        ends = []
        for sign in (1.0, -1.0):
            if self._most[variable] - self._least[variable] >= width:
                return None
            ends.append(self._go({variable: sign}))
        if self._most[variable] - self._least[variable] >= width:
            return None
        return ends[0], ends[1]

    def _go(self, directions: Mapping[int, float]) -> _End:
        """Where variables are least (1) or greatest (-1), all together."""
        import numpy as np
        from scipy.optimize import linprog

        aim = np.zeros(len(self._low))
        aim[list(directions)] = list(directions.values())
        found = linprog(
            aim + self._lean,
            A_eq=self._matrix,
            b_eq=self._sides,
            bounds=np.column_stack((self._low, self._high)),
            method="highs-ds",
        )
        if found.status != 0:
            raise ValueError(f"what a reader can conclude was not found (status {found.status})")
        point = np.rint(found.x)
        if np.abs(found.x - point).max(initial=0.0) > 1e-6:
            whole = search(self._matrix, self._sides, aim, self._low, self._high)
            point = self._true if whole is None else whole
        self.points.append(point)
        self.take(point)
        return _End(abs(float(aim @ (found.x - self._true))), found.eqlin.marginals)


def search(
    matrix: Any,
    sides: "np.ndarray[Any, Any]",
    aim: "np.ndarray[Any, Any]",
    low: "np.ndarray[Any, Any]",
    high: "np.ndarray[Any, Any]",
) -> "np.ndarray[Any, Any] | None":
    """Whole numbers between `low` and `high` that meet the relations, `aim` as small as the limit of nodes lets it be."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    found = milp(
        aim,
        integrality=np.ones(len(low)),
        bounds=Bounds(low, high),
        constraints=LinearConstraint(matrix, sides, sides),
        options={"node_limit": NODES},
    )
    return None if found.x is None else np.rint(found.x)


class _Choice:
    """The master problem: which counts to hide, at the least loss, so that all cuts hold."""

    def __init__(self, reader: _Reader, results: Sequence[Result]) -> None:
        self._place = {variable: number for number, variable in enumerate(reader.maskable)}
        self._cuts: list[_Cut] = []
        self._must = [variable for variable in self._place if reader.is_sensitive(variable)]
        self._cost = [0.0] * len(self._place)
        self._lost: list[tuple[float, list[int]]] = []
        for row in results:
            weight = _weight(row)
            own = [self._place[reader.variable_of((*_name(row), of))] for of in ("n", "N")]
            for place in own:
                self._cost[place] += weight / 10
            self._lost.append((weight, own))
        if reader.exact:
            for terms in reader.rows():
                self._spread(reader, terms)

    def _spread(self, reader: _Reader, terms: Mapping[int, float]) -> None:
        """Nothing is hidden alone in a relation of which all else is shown."""
        if any(reader.is_open(variable) for variable in terms):
            return
        own = [variable for variable in terms if variable in self._place]
        others = len(terms) - len(own)
        if others > 1:
            return
        for variable in own if not others else ():
            self._cuts.append(_Cut({**{v: 1.0 for v in own if v != variable}, variable: -1.0}, 0.0))
        if others:
            self._cuts.append(_Cut(dict.fromkeys(own, 1.0), 1.0))

    def add(self, cuts: Iterable[_Cut]) -> None:
        """Forbid choices."""
        self._cuts += cuts

    def find(self) -> set[int]:
        """The cheapest choice that no cut forbids. Raises PrivacyError where there is none."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        counts, size = len(self._place), len(self._place) + len(self._lost)
        entries: list[tuple[int, int, float]] = []
        least: list[float] = []
        for cut in self._cuts:
            entries += [(len(least), self._place[v], c) for v, c in cut.terms.items()]
            least.append(cut.least - 1e-7)
        for number, (_, own) in enumerate(self._lost):  # a row is lost with one of its counts
            for place in set(own):
                entries += [(len(least), counts + number, 1.0), (len(least), place, -1.0)]
                least.append(0.0)
        rows, columns, data = zip(*entries, strict=True)
        low = np.zeros(size)
        low[[self._place[v] for v in self._must]] = 1.0
        found = milp(
            np.array([*self._cost, *(weight for weight, _ in self._lost)]),
            integrality=np.array([1] * counts + [0] * len(self._lost)),
            bounds=Bounds(low, np.ones(size)),
            constraints=LinearConstraint(csr_array((data, (rows, columns)), shape=(len(least), size)), np.array(least)),
            options={"node_limit": NODES, "mip_rel_gap": 0.005},
        )
        if found.x is None:
            raise PrivacyError(
                "no choice of figures is safe; take another threshold, or release when there are more children"
            )
        return {variable for variable, place in self._place.items() if found.x[place] > 0.5}


def _weight(row: Result) -> float:
    if row.group in TREATMENT_GROUPS:
        return WEIGHTS["stratum" if row.stratifier else "treatment"]
    if row.group in ("cohort", "foci", "tnfi-lines"):
        return WEIGHTS["cohort" if row.stratifier else "overall"]
    return WEIGHTS["reading"]
