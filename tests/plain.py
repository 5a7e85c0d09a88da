"""Plain masking, as a spreadsheet would do it: the small counts, and one more where a margin would give one away."""

from collections import defaultdict

from attacker import Said

PARTS = {"sex", "focality", "sapho", "sapho-at-diagnosis", "bone", "agent", "line", "line-ended"}
"""Stratifiers whose strata add up to the group."""


def hide_small(truth: dict[str, int], threshold: int) -> set[str]:
    """Primary masking: counts of 1 to threshold - 1."""
    return {key for key, count in truth.items() if 0 < count < threshold}


def hide_small_and_margins(truth: dict[str, int], threshold: int) -> set[str]:
    """Primary masking, and the next smallest stratum wherever a stratifier has only one masked."""
    hidden = hide_small(truth, threshold)
    margins: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for key in truth:
        row, _, of = key.rpartition(" ")
        group, _, cut = row.partition(" ")
        if cut.partition("=")[0] in PARTS:
            margins[group, cut.partition("=")[0], of].append(key)
    for keys in margins.values():
        if len(hidden & set(keys)) == 1 and (others := [k for k in keys if k not in hidden and truth[k]]):
            hidden.add(min(others, key=lambda k: (truth[k], k)))
    return hidden


def said_of(truth: dict[str, int], hidden: set[str]) -> Said:
    """What such a release would say."""
    said = Said(counts={key: count for key, count in truth.items() if key not in hidden}, hidden=set(hidden))
    said.rows = list(dict.fromkeys(key.rpartition(" ")[0] for key in truth))
    return said
