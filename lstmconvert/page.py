"""A report as a page: one self-contained HTML file with its drawings inside, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .25rem .8rem; text-align: left; }
th { border-bottom: 2px solid #d0d7de; }
td { border-bottom: 1px solid #eaeef2; font-variant-numeric: tabular-nums; }
.proved { background: #dafbe1; color: #116329; } .failed, .unproved { background: #ffebe9; color: #a40e26; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; font-weight: 600; }
svg { display: block; margin: .6rem 0; max-width: 100%; } code { font-size: .85em; }
"""
_COLOURS = {
    "input": "#4e79a7", "forget": "#e15759", "cell": "#59a14f", "output": "#f28e2b", "update": "#4e79a7",
    "reset": "#e15759", "candidate": "#59a14f", "hidden": "#4e79a7",
}  # fmt: skip


def of_suffix(path: Path, report: Mapping[str, Any]) -> str:
    """A report as the text that a file's suffix asks for: HTML, or else JSON."""
    if path.suffix.lower() in (".html", ".htm"):
        return html(report)
    return json.dumps(report, indent=2) + "\n"


def html(report: Mapping[str, Any]) -> str:
    """The page of a report; see ``report`` for its keys."""
    source, target = report["source"], report["target"]
    title = f"{Path(source['path']).name} to {Path(target['path']).name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p><span class="verdict {report["verdict"]}">{report["verdict"]}</span> {_sentence(report)}</p>',
        _files(report),
        _movement(report.get("data_movement")),
        _layers(report.get("layers", ())),
        _whole(report.get("whole", ())),
        _rewrites(report.get("rewrites", ())),
        _list("Problems", report.get("problems", ())),
        _list("Not shown", report.get("skipped", ())),
        _maps(report.get("gate_maps", ())),
        _statistics(report.get("gate_maps", ())),
        "<h2>Made with</h2><p>"
        + escape(", ".join(f"{name} {release}" for name, release in report["versions"].items()))
        + "</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _sentence(report: Mapping[str, Any]) -> str:
    if report["verdict"] == "unproved":
        return "The proof was left out."
    exact = "every weight is the same bit for bit" if report["exact"] else "the weights differ in bits"
    return escape(
        f"Outputs and states differ by at most {report['max_abs_error']:.3g} "
        f"(float32 rounding explains {report['tolerance']:.3g}); {exact}."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _files(report: Mapping[str, Any]) -> str:
    rows = [
        (side, report[side]["path"], report[side]["framework"], report[side]["sha256"])
        for side in ("source", "target")
    ]
    return "<h2>Files</h2>" + _table(("", "path", "framework", "SHA-256"), rows)


def _movement(moved: Mapping[str, Any] | None) -> str:
    if moved is None:
        return ""
    text = (
        f'<h2>Movement of data</h2><p><span class="verdict {moved["verdict"]}">{moved["verdict"]}</span> '
        f"Each element was numbered and followed: {moved['elements_read']} from tensors of the "
        f"source into gates, "
        f"{moved['elements_written']} from gates into the target and back.</p>"
    )
    return text + _items(moved["problems"]) + _items(moved["skipped"])


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>" if sentences else ""


def _list(title: str, sentences: Sequence[str]) -> str:
    return f"<h2>{title}</h2>{_items(sentences)}" if sentences else ""


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    rows = [
        (
            layer["name"],
            layer["target"],
            "bit-equal" if layer["bit_equal"] else _differing(layer["differing"]),
            f"{layer['max_abs_error']:.3g}",
            f"{layer['max_rel_error']:.3g}",
            f"{layer['tolerance']:.3g}",
            "proved" if layer["proved"] else "failed",
        )
        for layer in layers
    ]
    header = ("layer", "in the target", "weights", "largest error", "relative", "tolerance", "verdict")
    drawn = "".join(_plot(layer) for layer in layers if layer["time_errors"])
    return (
        "<h2>Recurrent layers</h2>" + _table(header, rows) + "<h2>Error over time</h2>" * bool(drawn) + drawn
    )


def _differing(blocks: Sequence[Mapping[str, Any]]) -> str:
    told = [
        f"{b['block']} by {b['max_abs_error']:.3g}"
        + (f" ({b['ulps']} ulps)" if b["ulps"] is not None else "")
        for b in blocks
    ]
    return "; ".join(told) or "other equations"


def _plot(layer: Mapping[str, Any]) -> str:
    """Largest error of the outputs at each step, on a scale that ends at the tolerance."""
    width, height, left, top = 520, 150, 80, 14
    errors = [min(float(e), 1e300) for e in layer["time_errors"]]
    highest = max([*errors, float(layer["tolerance"])]) or 1.0
    step = (width - left - 20) / max(len(errors) - 1, 1)

    def y(value: float) -> float:
        return top + (height - top - 30) * (1 - value / highest)

    points = " ".join(f"{left + n * step:.1f},{y(e):.1f}" for n, e in enumerate(errors))
    dots = "".join(
        f'<circle cx="{left + n * step:.1f}" cy="{y(e):.1f}" r="3" fill="#0969da"/>'
        for n, e in enumerate(errors)
    )
    limit = y(float(layer["tolerance"]))
    return (
        f"<p>{escape(layer['name'])}</p>"
        f'<svg width="{width}" height="{height}" role="img" '
        'aria-label="error over time steps" font-size="11">'
        f'<line x1="{left}" x2="{width - 20}" y1="{limit:.1f}" y2="{limit:.1f}" '
        'stroke="#cf222e" stroke-dasharray="4"/>'
        f'<text x="{left - 6}" y="{limit + 4:.1f}" text-anchor="end" fill="#cf222e">'
        f"{layer['tolerance']:.2g}</text>"
        f'<line x1="{left}" x2="{width - 20}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="#8c959f"/>'
        f'<text x="{left - 6}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>'
        f'<polyline points="{points}" fill="none" stroke="#0969da" stroke-width="1.5"/>{dots}'
        f'<text x="{left}" y="{height - 6}">step 1</text>'
        f'<text x="{width - 20}" y="{height - 6}" text-anchor="end">step {len(errors)}</text></svg>'
    )


def _whole(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return ""
    rows = [
        (
            run["runtime"],
            f"{run['max_abs_error']:.3g}",
            f"{run['max_rel_error']:.3g}",
            f"{run['tolerance']:.3g}",
            "proved" if run["proved"] else f"failed, first at {run['first_difference']}",
        )
        for run in runs
    ]
    header = ("run by", "largest error", "relative", "tolerance", "verdict")
    return "<h2>Whole model</h2>" + _table(header, rows)


def _rewrites(steps: Sequence[Mapping[str, Any]]) -> str:
    if not steps:
        return ""
    rows = [
        (s["layer"], s["description"], "exact" if s["exact"] else f"rounds by at most {s['rounding']:.3g}")
        for s in steps
    ]
    return "<h2>What was rewritten</h2>" + _table(("layer", "step", ""), rows)


def _maps(maps: Sequence[Mapping[str, Any]]) -> str:
    """For each layer the tensors of both sides with the gates' blocks drawn into them."""
    if not maps:
        return ""
    layers = dict.fromkeys(row["layer"] for row in maps)
    drawn = []
    for layer in layers:
        rows = [row for row in maps if row["layer"] == layer]
        gates = dict.fromkeys(_gate(row["block"]) for row in rows if _gate(row["block"]) in _COLOURS)
        legend = " ".join(
            f'<span style="color:{_COLOURS[gate]}">&#9632;</span> {escape(gate)}' for gate in gates
        )
        drawn.append(f"<h3>{escape(layer)}</h3><p>{legend}</p>")
        for side in ("source", "target"):
            tensors = dict.fromkeys((r[side]["tensor"], tuple(r[side]["shape"])) for r in rows if r[side])
            pictures = "".join(_tensor(name, shape, rows, side) for name, shape in tensors)
            drawn.append(f"<p>{side}</p>{pictures}")
    return "<h2>Gate maps</h2>" + "".join(drawn)


def _gate(block: str) -> str:
    return block.rsplit(" ", 1)[-1]


def _tensor(name: str, shape: tuple[int, ...], rows: Sequence[Mapping[str, Any]], side: str) -> str:
    """A tensor as a rectangle: its last axis to the right, the one before it down, others side by side."""
    count = 1
    for size in shape[:-2]:
        count *= size
    height, width = (shape[-2] if len(shape) > 1 else 1), (shape[-1] if shape else 1)
    scale = min(260 / max(height, 1), 420 / max(width, 1), 24.0)
    tall, wide = max(height * scale, 14.0), max(width * scale, 14.0)
    boxes = []
    for row in rows:
        place = row[side]
        if place is None or place["tensor"] != name:
            continue
        first, last = ((0,) * (2 - len(shape)) + tuple(place[end]) for end in ("first", "last"))
        page = 0
        for index, size in zip(first[:-2], shape[:-2], strict=False):
            page = page * size + index
        (top, bottom), (begin, end) = (sorted((first[a], last[a])) for a in (-2, -1))
        x = page * (wide + 12) + begin / max(width, 1) * wide
        y = top / max(height, 1) * tall
        w, h = (end - begin + 1) / max(width, 1) * wide, (bottom - top + 1) / max(height, 1) * tall
        gate = _gate(row["block"])
        boxes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
            f'fill="{_COLOURS.get(gate, "#9c755f")}" '
            f'fill-opacity=".75" stroke="#fff"><title>{escape(row["block"])} '
            f"{list(first)} to {list(last)}</title>"
            "</rect>"
        )
    total = count * (wide + 12)
    label = escape(f"{name} {shape}")
    return (
        f"<code>{label}</code>"
        f'<svg width="{total:.0f}" height="{tall + 2:.0f}" role="img" aria-label="{label}">'
        f"{''.join(boxes)}</svg>"
    )


def _statistics(maps: Sequence[Mapping[str, Any]]) -> str:
    if not maps:
        return ""
    rows = [
        (
            row["layer"],
            row["block"],
            *(f"{row['weights'][k]:.4g}" for k in ("mean", "deviation", "least", "largest")),
        )
        for row in maps
    ]
    header = ("layer", "block", "mean", "deviation", "least", "largest")
    return "<h2>Weights of every gate</h2>" + _table(header, rows)
