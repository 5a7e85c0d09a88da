"""The charts of the report: plain series in, inline SVG out. Drawn by matplotlib, without its global state of figures.

Every chart is drawn in inches at the width of an A4 page, with its text as text; a reader who sees none of it finds the same
figures in the table beside it. The same input gives the same bytes.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

WIDTH = 7.2
"""Inches: what is left of an A4 page between its margins."""
INK, SOFT, RULE, ACCENT, TINT = "#1c2226", "#5a666d", "#c3ccd0", "#1d5c73", "#f3f6f7"
COLOURS = (ACCENT, "#b3541e", "#6a4c93", "#3f7d3a", "#8a6d00", "#a83a5b", INK)
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.4)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
    "-",
)
CHARACTER = 0.072
"""Inches that one character of a label takes at most, on average."""


@cache
def load() -> None:
    """Load matplotlib so that it leaves nothing in the user's home: what it keeps for itself is gone when it is loaded."""
    before = os.environ.get("MPLCONFIGDIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            import matplotlib.figure
            import matplotlib.font_manager  # noqa: F401 - it looks for fonts and writes down which there are
        finally:
            if before is None:
                del os.environ["MPLCONFIGDIR"]
            else:
                os.environ["MPLCONFIGDIR"] = before


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Our look on top of matplotlib's defaults: what a user's own settings say does not matter, nor a cache it cannot keep."""
    import logging
    import warnings

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": RULE,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "path.simplify": True,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # of a script its font has not: the reader's own will show it
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        yield


def _figure(height: float, width: float = WIDTH) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an SVG element for a page: its ids its own, no namespace, link or metadata, named for those who hear it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r' (?:d|points)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    text = re.sub(
        r"'DejaVu Sans',.*?sans-serif", "sans-serif", text
    )  # measured in a wide font, shown in the reader's own
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    width, height = (float(found) for found in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    head = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {width:g} {height:g}"'
        f' style="max-width:{width * 1.6:.0f}px">'
        f'<title id="{name}-title">{_escape(title)}</title><desc id="{name}-desc">{_escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :].strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    """A label as it stands: matplotlib would read dollars as mathematics."""
    return text.replace("$", r"\$")


def _bare(figure: Any, height: float, width: float = WIDTH) -> Any:
    """Axes that are the whole figure, in inches, the origin top left."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return axes


# ---- attrition ----


@dataclass(frozen=True, slots=True)
class Step:
    """One box of a flow: what it is, how many remain, and who left on the way to it."""

    name: str
    kept: str
    dropped: tuple[str, ...] = ()


def draw_flow(name: str, title: str, description: str, steps: Sequence[Step]) -> str:
    """The boxes from top to bottom, those who left to the right."""
    from textwrap import wrap

    from matplotlib.patches import FancyBboxPatch

    box, side, left = 2.7, 3.9, 3.15
    lines = [[line for reason in step.dropped for line in wrap(reason, 50, subsequent_indent="   ")] for step in steps]
    heights = [max(0.62, 0.165 * len(own) + 0.32) for own in lines]
    tops = [0.08 + sum(heights[: i + 1]) - heights[0] + (0.16 * i) for i in range(len(steps))]
    height = (tops[-1] + 0.62) if steps else 0.5
    with _style(name):
        figure = _figure(height)
        axes = _bare(figure, height)

        def rectangle(x: float, y: float, wide: float, high: float, face: str, edge: str) -> None:
            axes.add_patch(
                FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=.05", fc=face, ec=edge, lw=0.9)
            )

        def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
            axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": SOFT, "lw": 0.9})

        for i, step in enumerate(steps):
            last = i == len(steps) - 1
            rectangle(0.05, tops[i], box, 0.46, ACCENT if last else TINT, ACCENT)
            colour = "white" if last else INK
            middle = tops[i] + 0.23
            axes.text(0.17, middle, _plain("\n".join(wrap(step.name, 30))), va="center", color=colour)
            axes.text(box - 0.05, middle, step.kept, va="center", ha="right", color=colour, weight="bold", size=10)
            if i:
                arrow((0.05 + box / 2, tops[i - 1] + 0.46), (0.05 + box / 2, tops[i]))
            if lines[i]:
                high = 0.165 * len(lines[i]) + 0.12
                centre = (tops[i - 1] + 0.46 + tops[i]) / 2 if i else middle
                centre = max(centre, high / 2 + 0.02)
                rectangle(left, centre - high / 2, side, high, "white", RULE)
                axes.text(left + 0.1, centre, _plain("\n".join(lines[i])), va="center", size=8, linespacing=1.35)
                arrow((0.05 + box / 2, centre), (left, centre))
        return _svg(figure, name, title, description)


# ---- forest ----


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of a forest plot, in percent; a heading has no figures."""

    name: str
    counts: str = ""
    share: str = ""
    point: float | None = None
    low: float = 0.0
    high: float = 0.0
    weight: int = 0
    strong: bool = False


def draw_forest(name: str, title: str, description: str, effects: Sequence[Effect], heads: tuple[str, str, str]) -> str:
    """Proportions with their intervals, the size of a mark after the number behind it; `heads`: counts, share, axis."""
    step = 0.36 if any("\n" in one.name for one in effects) else 0.205
    height = step * len(effects) + 0.72
    longest = max((len(line) for one in effects for line in one.name.split("\n")), default=0)
    left = min(3.3, max(1.4, 0.3 + CHARACTER * longest))
    with _style(name):
        figure = _figure(height)
        wide = WIDTH - left - 2.05
        axes = figure.add_axes((left / WIDTH, 0.46 / height, wide / WIDTH, (height - 0.72) / height))
        axes.set_xlim(0, 100)
        axes.set_ylim(len(effects) - 0.5, -0.5)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_yticks([])
        axes.grid(visible=True, axis="x", color=RULE, lw=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(heads[2])
        axes.spines["left"].set_visible(False)
        most = max((one.weight for one in effects), default=1) or 1
        place = axes.get_yaxis_transform()
        counts, share = 1 + 0.62 / wide, 1 + 1.98 / wide
        for y, one in enumerate(effects):
            weight = "bold" if one.strong else "normal"
            indent = 0 if one.strong else 0.1
            axes.text((indent - left + 0.08) / wide, y, _plain(one.name), transform=place, va="center", weight=weight)
            axes.text(counts, y, one.counts, transform=place, va="center", ha="right", weight=weight)
            axes.text(share, y, one.share, transform=place, va="center", ha="right", weight=weight)
        drawn = [(y, one) for y, one in enumerate(effects) if one.point is not None]
        for end in ("low", "high"):
            ends = [getattr(one, end) for _, one in drawn]
            axes.plot(ends, [y for y, _ in drawn], color=INK, ls="", marker="|", ms=5, mew=1.1, clip_on=False)
        axes.hlines([y for y, _ in drawn], [one.low for _, one in drawn], [one.high for _, one in drawn], INK, lw=1.1)
        sizes = [(3 + 4 * (one.weight / most) ** 0.5) ** 2 for _, one in drawn]
        points = [one.point for _, one in drawn]
        axes.scatter(
            points, [y for y, _ in drawn], s=sizes, marker="s", c=ACCENT, ec="white", lw=0.5, clip_on=False, zorder=3
        )
        for x, head in ((counts, heads[0]), (share, heads[1])):
            axes.text(x, -0.5 - 0.09 / step, head, transform=place, ha="right", va="bottom", color=SOFT, size=8)
        return _svg(figure, name, title, description)


# ---- timelines ----


@dataclass(frozen=True, slots=True)
class Span:
    """One course in a row: where it lies (years), in which lane (0 lowest), how it looks, and what it says."""

    start: float
    end: float
    lane: int
    look: str
    label: str
    stop: str
    ongoing: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """One child: name, years of follow-up, courses, and marks (year, lane, kind)."""

    label: str
    followed: float
    spans: tuple[Span, ...]
    marks: tuple[tuple[float, int, str], ...]


LOOKS: dict[str, tuple[str, str]] = {
    "NSAID": ("#aab4b9", ""),
    "GC": ("#e6c65c", "||||"),
    "MTX": ("#d98a4e", "////"),
    "TNF": (ACCENT, ""),
    "BP": ("#a58bc4", "xxx"),
    "": ("#8fb583", "\\\\\\"),
}
"""Fill and hatching of a treatment class; any other class looks like the last one."""
MARKS: dict[str, tuple[str, str, float]] = {
    "sufficient": ("^", INK, 5.0),
    "insufficient": ("v", "white", 5.0),
    "regression": ("o", INK, 4.2),
    "no-regression": ("o", "white", 4.2),
    "mri": ("|", INK, 4.5),
}
_LANES = ((0.27, 0.13), (0.11, 0.13), (-0.11, 0.27))
"""Centre (down from the row) and height of a lane."""
_ABOVE, _BELOW = -0.36, 0.41
"""Where the marks of the top lane stand, and the line of follow-up with those of MRI."""
ON_FOLLOW_UP = 3
"""The lane of a mark that belongs to no course."""


def draw_timelines(
    name: str, title: str, description: str, lanes: Sequence[Lane], legend: Mapping[str, str], axis: str
) -> str:
    """One row a child, one bar a course. `legend` names each look and mark."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    row, top, bottom = 0.33, 0.1, 1.12
    height = row * max(len(lanes), 1) + top + bottom
    left, right = 0.45, 0.15
    with _style(name):
        figure = _figure(height)
        area = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
        axes = figure.add_axes(area)
        first = min((span.start for lane in lanes for span in lane.spans), default=0.0)
        last = max((max([lane.followed, *(s.end for s in lane.spans)]) for lane in lanes), default=1.0)
        axes.set_xlim(max(min(first, 0.0), -1.5) - 0.06, max(last, 0.5) * 1.02)
        axes.set_ylim(len(lanes) - 0.5, -0.52)
        axes.set_yticks(range(len(lanes)), [lane.label for lane in lanes])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis, labelpad=2)
        axes.grid(visible=True, axis="x", color=RULE, lw=0.5)
        axes.set_axisbelow(True)
        inch = (WIDTH - left - right) / (axes.get_xlim()[1] - axes.get_xlim()[0])
        axes.hlines([y + _BELOW for y in range(len(lanes))], 0, [lane.followed for lane in lanes], SOFT, lw=0.6)
        spans = [(y, span) for y, lane in enumerate(lanes) for span in lane.spans]
        for look, (fill, hatch) in LOOKS.items():
            own = [(y + _LANES[span.lane][0], _LANES[span.lane][1], span) for y, span in spans if span.look == look]
            if own:
                axes.barh(
                    [y for y, _, _ in own],
                    [span.end - span.start for _, _, span in own],
                    [high for _, high, _ in own],
                    [span.start for _, _, span in own],
                    color=fill,
                    hatch=hatch,
                    ec=INK,
                    lw=0.5,
                )
            going = [(span.end, y) for y, _, span in own if span.ongoing]
            if going:
                axes.plot(
                    *zip(*going, strict=True), ls="", marker=">", color=fill, mec=INK, mew=0.5, ms=4.5, clip_on=False
                )
        for y, span in spans:
            down = y + _LANES[span.lane][0]
            room = (span.end - span.start) * inch - 0.06 * len(span.label) - 0.04
            if span.label and room > 0:
                axes.text(
                    span.start + 0.03 / inch, down + 0.01, _plain(span.label), va="center", size=6.4, color="white"
                )
            if span.stop and span.lane == 2 and span.look == "TNF" and room > 0.05 + 0.06 * len(span.stop):
                axes.text(
                    *(span.end - 0.02 / inch, down, span.stop),
                    ha="right",
                    va="center",
                    size=6.2,
                    weight="bold",
                    color="white",
                )
            elif span.stop and span.lane == 2:
                axes.text(span.end, y + _ABOVE, span.stop, ha="left", va="center", size=6.2, weight="bold")
            elif span.stop:
                axes.text(span.end + 0.03 / inch, down, span.stop, ha="left", va="center", size=6.2, weight="bold")
        places = {0: _LANES[0][0], 1: _LANES[1][0], 2: _ABOVE, ON_FOLLOW_UP: _BELOW}
        for kind, (shape, fill, size) in MARKS.items():
            found = [(x, y + places[lane]) for y, one in enumerate(lanes) for x, lane, k in one.marks if k == kind]
            if found:
                edge = INK if kind == "mri" or fill == "white" else "white"
                drawn: Any = {"marker": shape, "mfc": fill, "mec": edge, "mew": 0.6, "ms": size, "ls": "", "zorder": 4}
                axes.plot(*zip(*found, strict=True), **drawn)
        handles: list[Any] = [
            Patch(fc=fill, hatch=hatch, ec=INK, lw=0.5, label=legend[look])
            for look, (fill, hatch) in LOOKS.items()
            if look in legend
        ]
        handles += [
            Line2D([], [], ls="", marker=shape, mfc=fill, mec=INK, ms=size, label=legend[kind])
            for kind, (shape, fill, size) in MARKS.items()
            if kind in legend
        ]
        if handles:
            figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, handlelength=1.6, columnspacing=1.4)
        return _svg(figure, name, title, description)


# ---- curves ----


@dataclass(frozen=True, slots=True)
class Curve:
    """A step function in percent over days, its band, and how many are at risk at a day."""

    name: str
    points: tuple[tuple[int, float, float | None, float | None], ...]
    at_risk: tuple[tuple[int, int], ...] = ()


def draw_curves(
    name: str,
    title: str,
    description: str,
    curves: Sequence[Curve],
    *,
    axes_names: tuple[str, str],
    at_risk: str,
    ticks: Mapping[int, str],
    from_zero: bool,
) -> str:
    """Step curves over years since the start, their 95 % bands, and the numbers at risk below at `ticks` (days, with their labels).

    `from_zero`: curves that rise from 0, else they fall from 100 percent.
    """
    year = 365.25
    counted = list(curves) if len({curve.at_risk for curve in curves}) > 1 else list(curves[:1])
    names = [curve.name if len(counted) > 1 else at_risk for curve in counted]
    left = min(2.4, max(0.95, 0.32 + CHARACTER * max((len(one) for one in names), default=0)))
    below = 0.85 + 0.17 * len(counted)
    columns = 2 if len(curves) == 2 and max(len(curve.name) for curve in curves) < 24 else 1
    height = 2.45 + below + 0.2 * ceil(len(curves) / columns)
    wide = WIDTH - left - 0.25
    with _style(name):
        figure = _figure(height)
        axes = figure.add_axes((left / WIDTH, below / height, wide / WIDTH, 2.4 / height))
        end = max([*ticks, *(p[0] for curve in curves for p in curve.points), 1]) / year
        axes.set_xlim(0, end)
        axes.set_ylim(0, 101)
        axes.set_xticks([tick / year for tick in ticks], list(ticks.values()))
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        axes.grid(visible=True, axis="y", color=RULE, lw=0.5)
        looks = [(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i in range(len(curves))]
        for curve, (colour, dash) in zip(curves, looks, strict=True):
            points = curve.points
            if points and points[0][0] > 0:
                start = 0.0 if from_zero else 100.0
                points = ((0, start, start, start), *points)
            x = [point[0] / year for point in points]
            axes.step(x, [point[1] for point in points], where="post", color=colour, ls=dash, lw=1.7, label=curve.name)
            known = [(p[0] / year, p[2], p[3]) for p in points if p[2] is not None and p[3] is not None]
            if known and len(curves) <= 2:
                axes.fill_between(*zip(*known, strict=True), step="post", color=colour, alpha=0.13, lw=0)
        if len(counted) > 1:
            axes.text((0.08 - left) / wide, -0.49 / 2.4, at_risk, transform=axes.transAxes, color=SOFT, size=8)
        for i, (curve, label) in enumerate(zip(counted, names, strict=True)):
            y = (-0.64 - 0.17 * i) / 2.4
            colour = looks[i][0] if len(counted) > 1 else INK
            place = {"va": "center", "size": 8}
            axes.text((0.08 - left) / wide, y, _plain(label), transform=axes.transAxes, color=colour, **place)
            for tick, number in curve.at_risk:
                axes.text(tick / year, y, str(number), transform=axes.get_xaxis_transform(), ha="center", **place)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=8.5, handlelength=3.2, borderaxespad=0.2
        )
        return _svg(figure, name, title, description)


# ---- flows between lines ----


@dataclass(frozen=True, slots=True)
class Flow:
    """So many that went from a node to another; `look` is the place of its reason in the legend."""

    source: str
    target: str
    n: int
    look: int


def draw_sankey(
    name: str,
    title: str,
    description: str,
    columns: Sequence[Sequence[str]],
    flows: Sequence[Flow],
    names: Mapping[str, str],
    legend: Sequence[str],
) -> str:
    """Bands between nodes that stand in columns, from left to right, as thick as what flows; hatched by reason."""
    from matplotlib.patches import Patch, PathPatch, Rectangle
    from matplotlib.path import Path

    hatches = ("", "///", "---", "xxx", "\\\\\\", "|||", "+++")
    pale = ("#8fb3c0", "#dda77f", "#e6d08a", "#b5a4cf", "#a9c7a0", "#d9a3b4", "#c3ccd0")
    into = {node: sum(f.n for f in flows if f.target == node) for column in columns for node in column}
    out = {node: sum(f.n for f in flows if f.source == node) for node in into}
    size = {node: max(into[node], out[node]) for node in into}
    most = max((sum(size[node] for node in column) for column in columns), default=1) or 1
    unit, gap, node_width = 3.0 / most, 0.36, 0.13
    deepest = max((unit * sum(size[n] for n in column) + gap * len(column) for column in columns), default=1.0)
    foot = 0.26 * ceil(len(legend) / 3) + 0.12
    height = deepest + 0.2 + foot
    step = (WIDTH - 1.75) / max(len(columns) - 1, 1)
    with _style(name):
        figure = _figure(height)
        axes = _bare(figure, height)
        place: dict[str, tuple[float, float]] = {}
        for i, column in enumerate(columns):
            y = 0.25
            for node in column:
                place[node] = 0.05 + i * step, y
                y += unit * size[node] + gap
        left, right = dict.fromkeys(into, 0), dict.fromkeys(into, 0)
        order = {node: (i, j) for i, column in enumerate(columns) for j, node in enumerate(column)}
        for flow in sorted(flows, key=lambda f: (order[f.source], order[f.target], f.look)):
            (x0, y0), (x1, y1) = place[flow.source], place[flow.target]
            x0 += node_width
            y0 += unit * left[flow.source]
            y1 += unit * right[flow.target]
            left[flow.source] += flow.n
            right[flow.target] += flow.n
            thick, middle = unit * flow.n, (x0 + x1) / 2
            corners = [
                (x0, y0), (middle, y0), (middle, y1), (x1, y1),
                (x1, y1 + thick), (middle, y1 + thick), (middle, y0 + thick), (x0, y0 + thick), (x0, y0),
            ]  # fmt: skip
            codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
            look = flow.look % len(hatches)
            axes.add_patch(PathPatch(Path(corners, codes), fc=pale[look], hatch=hatches[look], ec=SOFT, lw=0.4))
            axes.text(
                x0 + 0.06,
                y0 + thick / 2,
                str(flow.n),
                va="center",
                size=8,
                bbox={"fc": "white", "ec": "none", "pad": 0.6},
            )
        for node, (x, y) in place.items():
            axes.add_patch(Rectangle((x, y), node_width, max(unit * size[node], 0.02), fc=ACCENT, ec="none"))
            axes.text(x, y - 0.05, _plain(f"{names[node]}: {size[node]}"), va="bottom", size=8.5, weight="bold")
        handles = [
            Patch(fc=pale[i % len(pale)], hatch=hatches[i % len(hatches)], ec=SOFT, lw=0.4, label=text)
            for i, text in enumerate(legend)
        ]
        figure.legend(handles=handles, loc="lower left", ncols=3, fontsize=8, handlelength=2)
        return _svg(figure, name, title, description)


# ---- values over time ----


@dataclass(frozen=True, slots=True)
class Panel:
    """The values of one analyte: a line a child, and the median by period (from month, to month, value)."""

    title: str
    lines: tuple[tuple[tuple[float, float], ...], ...]
    medians: tuple[tuple[float, float, float], ...]


def draw_trends(
    name: str,
    title: str,
    description: str,
    panels: Sequence[Panel],
    window: tuple[float, float],
    names: tuple[str, str],
) -> str:
    """Small charts side by side; `names` are of the axis and of the median."""
    rows = ceil(len(panels) / 2)
    height = 1.62 * rows + 0.5
    with _style(name):
        from matplotlib.collections import LineCollection

        figure = _figure(height)
        for i, panel in enumerate(panels):
            down, across = divmod(i, 2)
            area = (0.5 + 3.55 * across, height - 1.62 * (down + 1) + 0.27, 3.0, 1.06)
            axes = figure.add_axes((area[0] / WIDTH, area[1] / height, area[2] / WIDTH, area[3] / height))
            axes.set_title(_plain(panel.title), loc="left", fontsize=8.5, fontweight="bold", pad=3)
            axes.set_xlim(*window)
            axes.set_xticks([tick for tick in range(-12, 61, 12) if window[0] <= tick <= window[1]])
            axes.tick_params(labelsize=8, length=2)
            axes.axvline(0, color=SOFT, lw=0.8, ls=(0, (3, 2)))
            axes.add_collection(LineCollection([list(line) for line in panel.lines], colors="#8b979d", linewidths=0.5))
            values = [v for line in panel.lines for x, v in line if window[0] <= x <= window[1]]
            axes.set_ylim(
                min([*values, 0]) if values and min(values) < max(values) / 2 else min(values, default=0) * 0.97,
                max(values, default=1) * 1.05 or 1,
            )
            if panel.medians:
                start, end, value = zip(*panel.medians, strict=True)
                axes.hlines(value, start, end, "#b3541e", lw=2.4, label=names[1])
        figure.text(0.5, 0.12 / height, names[0], ha="center", va="center")
        if any(panel.medians for panel in panels):
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="lower right", fontsize=8)
        return _svg(figure, name, title, description)


# ---- sensitivity ----


@dataclass(frozen=True, slots=True)
class Bars:
    """One figure of the table and what it becomes: base and, for each rule, (name, (value, percent) ...)."""

    title: str
    base: float
    rules: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


def draw_tornado(name: str, title: str, description: str, parts: Sequence[Bars], axis: str) -> str:
    """For each figure, the widest rule on top: from its least to its greatest percentage, around the base."""
    heights = [0.24 * max(len(part.rules), 1) + 0.36 for part in parts]
    height = sum(heights) + 0.5
    left = min(3.2, 0.3 + CHARACTER * max((len(rule) for part in parts for rule, _ in part.rules), default=10))
    with _style(name):
        figure = _figure(height)
        top = height - 0.02
        for part, high in zip(parts, heights, strict=True):
            axes = figure.add_axes(
                (left / WIDTH, (top - high + 0.04) / height, (WIDTH - left - 0.15) / WIDTH, (high - 0.28) / height)
            )
            top -= high
            last = part is parts[-1]
            axes.set_xlim(-14, 114)
            axes.spines["bottom"].set_bounds(0, 100)
            axes.spines["left"].set_visible(False)
            axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100"] if last else [""] * 5)
            axes.set_ylim(max(len(part.rules), 1) - 0.5, -0.5)
            axes.set_yticks(range(len(part.rules)), [_plain(rule) for rule, _ in part.rules])
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=True, axis="x", color=RULE, lw=0.5)
            axes.set_axisbelow(True)
            axes.text(
                (0.05 - left) / (WIDTH - left - 0.15),
                1 + 0.13 / (high - 0.28),
                _plain(part.title),
                transform=axes.transAxes,
                weight="bold",
                va="center",
            )
            for y, (_, values) in enumerate(part.rules):
                shares = [share for _, share in values]
                least, greatest = min([*shares, part.base]), max([*shares, part.base])
                axes.barh(y, greatest - least, 0.5, least, color="#8fb3c0", ec=ACCENT, lw=0.6)
                for below, found in ((True, least), (False, greatest)):
                    label = ", ".join(value for value, share in values if share == found and share != part.base)
                    if label:
                        axes.text(
                            found + (-1 if below else 1),
                            y,
                            _plain(label),
                            ha="right" if below else "left",
                            va="center",
                            size=7.5,
                        )
            axes.axvline(part.base, color=INK, lw=1.2)
            if last:
                axes.set_xlabel(axis)
        return _svg(figure, name, title, description)
