"""A report as one self-contained HTML page: no script, nothing fetched, every plot an inline SVG."""

from __future__ import annotations

import io
import math
import re
import textwrap
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from services.audits.report import Check, Evidence, Figure, Report, Verdict

WORDS = {
    Verdict.PASSES: "passes",
    Verdict.LOOK: "look at this",
    Verdict.STOP: "do not promote",
    Verdict.NOT_ASSESSED: "not assessed",
}
_COLOURS = ("#2563a8", "#c2571a", "#4d7c3a", "#7a4fa3", "#8a6d1b", "#1f7a7a")
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fourfold",
    "text.parse_math": False,
    "font.size": 9,
}
_LABEL_LINE = 30
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5c6675;--line:#d8dde4;--ground:#fff;--panel:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#a3acb9;--line:#3a424d;--ground:#14181d;--panel:#1d2329}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:62rem;margin:0 auto;
padding:1.5rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.25rem;margin:0}h3{font-size:1rem;margin:1rem 0 .25rem}
.verdict{display:inline-block;padding:.1rem .7rem;border-radius:1rem;font-weight:600;color:#fff;white-space:nowrap}
.passes{background:#2e7d43}.look-at-this{background:#9a5b00}.do-not-promote{background:#b3261e}
.not-assessed{background:#5c6675}
section{border:1px solid var(--line);border-radius:.5rem;padding:1rem 1.25rem;margin:1.25rem 0}
header.check{display:flex;gap:1rem;align-items:center;flex-wrap:wrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.75rem 0}dt{color:var(--soft)}dd{margin:0;
overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{background:var(--panel);padding:.1rem .3rem;border-radius:.25rem;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:.25rem;padding:.25rem}
figure svg{width:100%;height:auto;display:block}ul{margin:.5rem 0;padding-left:1.25rem}.soft{color:var(--soft)}
@media(max-width:40rem){body{padding:.75rem}section{padding:.75rem}dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}
.found,.found tbody,.found tr,.found td{display:block}.found thead{display:none}
.found td{padding:.1rem 0;border:0}.found tr{padding:.5rem 0;border-bottom:1px solid var(--line)}
.evidence{min-width:44rem}}
"""


def page(report: Report) -> str:
    """The HTML document of a report."""
    title = f"{report.model}/{report.version}: {WORDS[report.verdict]}"
    beside = f", beside version {report.baseline}" if report.baseline else ""
    checks = "".join(_check(check) for check in report.checks)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in report.notes)
    rows = "".join(
        f'<tr><td><a href="#{escape(check.name)}">{escape(check.name)}</a></td><td>{_badge(check.verdict)}</td>'
        f"<td>{escape(check.summary)}</td></tr>"
        for check in report.checks
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Audit of {escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Audit of {escape(report.model)}, version {report.version}{beside}</h1>"
        f"<p>{_badge(report.verdict)}</p>"
        f'<table class="found"><thead><tr><th>check</th><th>verdict</th><th>what was found</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{notes}{checks}<section><h2>How it was made</h2>{_made(report)}</section>"
        "</body></html>"
    )


def _badge(verdict: Verdict) -> str:
    return f'<span class="verdict {verdict}">{WORDS[verdict]}</span>'


def _check(check: Check) -> str:
    parts = [
        f'<header class="check"><h2>{escape(check.name)}</h2>{_badge(check.verdict)}'
        f'<span class="soft">{check.seconds:.1f} s</span></header><p>{escape(check.summary)}</p>'
    ]
    if check.advice:
        parts.append(f"<p><strong>What to do.</strong> {escape(check.advice)}</p>")
    if check.figures:
        parts.append(f'<div class="figures">{"".join(_figure(figure) for figure in check.figures)}</div>')
    if check.evidence:
        rows = "".join(_evidence(item) for item in check.evidence)
        parts.append(
            '<h3>Evidence</h3><div class="scroll"><table class="evidence"><thead><tr><th>what</th>'
            '<th class="number">value</th><th class="number">95 % interval</th><th class="number">n</th>'
            "<th>unit</th><th>budget, seeds</th>"
            f'<th class="number">threshold</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
        sources = {item.threshold_source: None for item in check.evidence if item.threshold_source}
        if sources:
            told = "".join(f"<li>{escape(source)}</li>" for source in sources)
            parts.append(f"<h3>Where the thresholds come from</h3><ul>{told}</ul>")
    if check.notes:
        parts.append(f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in check.notes)}</ul>")
    return f'<section id="{escape(check.name)}">{"".join(parts)}</section>'


def _evidence(item: Evidence) -> str:
    interval = "" if item.low is None or item.high is None else f"{_number(item.low)} – {_number(item.high)}"
    seeds = ", ".join(str(seed) for seed in item.seeds)
    cells = (
        (escape(item.name), ""),
        (_number(item.value), "number"),
        (interval, "number"),
        ("" if item.n is None else str(item.n), "number"),
        (escape(item.unit), ""),
        (escape(", ".join(part for part in (item.budget, f"seed {seeds}" if seeds else "") if part)), ""),
        ("" if item.threshold is None else _number(item.threshold), "number"),
    )
    return (
        "<tr>"
        + "".join(f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>" for text, kind in cells)
        + ("</tr>")
    )


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def _made(report: Report) -> str:
    used = report.dataset
    rows = {
        "audit": report.id,
        "made": f"{report.created_at:%Y-%m-%d %H:%M:%S} UTC, in {report.seconds:.0f} s",
        "budget, seed": f"{report.budget}, {report.seed}",
        "data set": "none at hand" if used is None else f"{used.name or ''} {used.digest or ''}".strip() or "a folder",
        "held out": "" if used is None else f"{used.n} examples; {used.split}",
        "code": report.revision or "not in a repository",
        "libraries": ", ".join(f"{name} {version}" for name, version in report.libraries.items()),
    }
    told = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items() if value)
    files = "".join(f"<dt>{escape(name)}</dt><dd>SHA-256 {digest}</dd>" for name, digest in report.bundle.items())
    return (
        f"<dl>{told}{files}</dl><p>To compute it again, from the folder of the code:</p>"
        f"<p><code>{escape(report.command)}</code></p>"
    )


def _figure(figure: Figure) -> str:
    return f"<figure>{svg(figure)}</figure>"


def svg(figure: Figure) -> str:
    """One plot as an SVG element without a width or height of its own."""
    with mpl.rc_context(_SETTINGS):
        bars = figure.kind == "bar" and bool(figure.series)
        height = max(2.6, 0.32 * len(figure.series[0].x) + 1.2) if bars else 3.4
        canvas = Canvas(figsize=(5.6, min(height, 12)), layout="constrained")
        axes = canvas.subplots()
        canvas.suptitle(figure.title, fontsize=10)  # over the whole width: labels may take most of it
        {"bar": _bars, "heatmap": _heatmap, "line": _lines, "scatter": _lines}[figure.kind](axes, figure)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Names of groups, which every plot has alike; what is referred to is named by a digest and stays.
    text = re.sub(r' id="[A-Za-z]+[A-Za-z.]*_\d+"', "", text)
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(figure.title)}">{rest}'


def _short(label: Any) -> str:
    """A label in lines that leave room for the plot."""
    return "\n".join(textwrap.wrap(str(label), _LABEL_LINE, max_lines=4, placeholder=" …"))


def _widths(value: list[float], bound: list[float], sign: int) -> list[float]:
    """Lengths of error bars; NaN, which draws none, where a bound is not known."""
    return [sign * (b - v) if math.isnan(b) else max(0.0, sign * (b - v)) for v, b in zip(value, bound, strict=True)]


def _none(values: Any) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _bars(axes: Any, figure: Figure) -> None:
    names = [_short(name) for name in figure.series[0].x]
    place = list(range(len(names)))
    filled = [one for number, one in enumerate(figure.series) if number == 0 or len(set(one.y)) > 1]
    width = 0.8 / len(filled)
    for number, one in enumerate(figure.series):
        y = _none(one.y)
        if one not in filled:  # the same everywhere: a line to compare with
            axes.axvline(y[0], color="#444", linestyle="--", linewidth=1, label=one.name)
            continue
        at = [spot + (number - (len(filled) - 1) / 2) * width for spot in place]
        axes.barh(at, y, height=width, color=_COLOURS[number % len(_COLOURS)], label=one.name)
        if one.low is not None and one.high is not None:
            error = [_widths(y, _none(one.low), -1), _widths(y, _none(one.high), 1)]
            axes.errorbar(y, at, xerr=error, fmt="none", ecolor="#222", elinewidth=1, capsize=2)
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set_xlabel(figure.y_label)
    axes.set_ylabel(figure.x_label)
    if len(figure.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _lines(axes: Any, figure: Figure) -> None:
    for number, one in enumerate(figure.series):
        colour = _COLOURS[number % len(_COLOURS)]
        y, style = _none(one.y), "o" if figure.kind == "scatter" else "-o" if len(one.x) > 2 else "--"
        axes.plot(one.x, y, style, color=colour, markersize=3, linewidth=1.3, label=one.name or None)
        if one.low is not None and one.high is not None:
            low, high = _none(one.low), _none(one.high)
            if figure.kind == "line":
                axes.fill_between(one.x, low, high, color=colour, alpha=0.18, linewidth=0)
            else:
                error = [_widths(y, low, -1), _widths(y, high, 1)]
                axes.errorbar(one.x, y, yerr=error, fmt="none", ecolor=colour, elinewidth=1)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if any(one.name for one in figure.series):
        axes.legend(frameon=False, fontsize=8)


def _heatmap(axes: Any, figure: Figure) -> None:
    z = [_none(row) for row in figure.z or ()]
    image = axes.imshow(z, aspect="auto", cmap="viridis")
    axes.figure.colorbar(image, ax=axes)
    if figure.series:
        axes.set_xticks(range(len(figure.series[0].x)), [_short(name) for name in figure.series[0].x])
    if figure.rows:
        axes.set_yticks(range(len(figure.rows)), [_short(name) for name in figure.rows])
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
