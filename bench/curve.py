"""Draw what more images bring, from rows of `bench/learning.py --json`: a dot for each split, a bar at their mean.

Run `python bench/curve.py ROWS.json [ROWS.json ...] --out docs/images/learning-curve.svg`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

SIZES = ("80+20", "250+50", "all")
PANELS = (("auroc", "AUROC", 0.6), ("det2", "detected at 2 % false rejects", 0.0))
COLOURS = {
    ("mtd", "quick"): "#1b6ca8",
    ("mtd", "full"): "#c0392b",
    ("elpv", "quick"): "#3a8f5c",
    ("elpv", "full"): "#b9770e",
}
OTHER = "#777777"
WIDTH, HEIGHT, PANEL, TOP, BOTTOM = 900, 380, 330, 44, 320
FONT = 'font-family="sans-serif" font-size="13"'
TURN = 7
"""Pixels between the dots of two curves at one size."""


def drawing(rows: list[dict[str, Any]]) -> str:
    """Return the figure as SVG."""
    curves = sorted({(row["set"], row["tier"]) for row in rows if row["tier"] != "nearest good"}, reverse=True)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, (key, title, low) in enumerate(PANELS):
        lines += _panel(rows, curves, 60 + number * (PANEL + 60), key, title, low)
    for number, curve in enumerate(curves):
        x, colour = 60 + 200 * number, COLOURS.get(curve, OTHER)
        lines.append(
            f'<circle cx="{x}" cy="365" r="5" fill="{colour}"/><text x="{x + 10}" y="369">{" ".join(curve)}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(  # noqa: PLR0917 - one caller
    rows: list[dict[str, Any]], curves: list[tuple[str, str]], left: float, key: str, title: str, low: float
) -> list[str]:
    def y(value: float) -> float:
        return BOTTOM - (value - low) / (1 - low) * (BOTTOM - TOP)

    lines = [f'<text x="{left}" y="26" font-size="15">{title}</text>']
    for step in range(5):
        value = low + step * (1 - low) / 4
        lines.append(f'<path d="M{left} {y(value):.1f}h{PANEL}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    centre = {size: left + (number + 0.5) * PANEL / len(SIZES) for number, size in enumerate(SIZES)}
    for size, x in centre.items():
        lines.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{size}</text>')
    for number, curve in enumerate(curves):
        colour, shift = COLOURS.get(curve, OTHER), (number - (len(curves) - 1) / 2) * TURN
        points = []
        for size in SIZES:
            values = [row[key] for row in rows if (row["set"], row["tier"]) == curve and row["size"] == size]
            if not values:
                continue
            x = centre[size] + shift
            lines += [
                f'<circle cx="{x:.1f}" cy="{y(max(value, low)):.1f}" r="3" fill="{colour}" fill-opacity=".5"/>'
                for value in values
            ]
            points.append(f"{x:.1f} {y(mean(values)):.1f}")
            lines.append(f'<path d="M{points[-1]}m-6 0h12" stroke="{colour}" stroke-width="2.5"/>')
        lines.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
    return lines


def main() -> None:
    """Read rows, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = [row for path in asked.rows for row in json.loads(path.read_bytes())["rows"]]
    asked.out.write_text(drawing(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
