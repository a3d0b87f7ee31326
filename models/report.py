"""An evaluation as one page that needs nothing else: sentences first, then figures, plots and the worst mistakes."""

from __future__ import annotations

import base64
import html
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.images import ImageFileError
from lineward.models.bundle import write_output
from lineward.models.features import read_source
from lineward.models.metrics import design_effect, rate, rate_of_parts
from lineward.models.shortcuts import area_with_interval
from lineward.models.verdict import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset, Item
    from lineward.models.evaluate import Judged
    from lineward.models.records import Manifest, Rate
    from lineward.models.verdict import Verdict

WORST = 12
"""Pictures shown of escapes and of false rejects."""
THUMBNAIL_PX = 220
BINS = 10
WIDTH, HEIGHT, MARGIN = 318, 290, 58


def write_report(path: Path, judged: Judged) -> None:
    """Write the page whole or not at all.

    Raises
    ------
    BundleError
        The file cannot be written.
    """
    write_output(path, page(judged).encode())


def page(judged: Judged) -> str:
    """Return the page as HTML; it loads nothing, from nowhere."""
    manifest, dataset = judged.manifest, judged.dataset
    title = f"{manifest.product} {manifest.version}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="quiet">Evaluated on {_text(dataset.folder)}, {now}. {_text(_groups(dataset))}</p>',
        "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in _sentences(judged)) + "</ul>",
        "<h2>Figures</h2>",
        _figures(judged),
        '<div class="row">',
        _verdict_table(judged),
        _type_table(judged),
        "</div>",
        "<h2>Is the confidence true, and what is it worth?</h2>",
        '<div class="row">',
        *_plots(judged),
        "</div>",
        "<h2>Worst escapes</h2>",
        _gallery(judged, escapes=True),
        "<h2>Worst false rejects</h2>",
        _gallery(judged, escapes=False),
        f'<p class="quiet">Bundle graph SHA-256 {manifest.graph_sha256}; data digest {dataset.digest}.</p>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{_text(title)}: evaluation</title><style>{_STYLE}</style></head>\n<body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--quiet:#5b6675;--paper:#fff;--card:#f4f6f8;--line:#d5dbe2;--good:#1f7a4d;
--bad:#b3261e;--look:#9a6700;--mark:#1f5fa8}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--quiet:#9aa5b4;--paper:#14181e;--card:#1d232b;--line:#38424e;
--good:#5cc28d;--bad:#ff8a80;--look:#e3b341;--mark:#7db4f0}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px}h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:32px 0 8px}
ul{font-size:1.1rem;padding-left:1.2em}.quiet{color:var(--quiet);font-size:.85rem;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start}
table{margin:0 0 12px;border-collapse:collapse;background:var(--card);font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;border:1px solid var(--line);text-align:right}th:first-child,td:first-child{text-align:left}
caption{text-align:left;color:var(--quiet);padding:4px 0;font-size:.9rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px}
figcaption{font-size:.85rem;color:var(--quiet);max-width:318px;overflow-wrap:anywhere}
svg text{fill:var(--ink);font:11px system-ui,sans-serif}svg .axis{stroke:var(--quiet)}svg .grid{stroke:var(--line)}
svg .curve{stroke:var(--mark);fill:none;stroke-width:2}svg .ideal{stroke:var(--quiet);stroke-dasharray:4 4}
svg .dot{fill:var(--mark)}svg .bar{stroke:var(--mark);stroke-width:1.5}svg .area{fill:var(--mark);opacity:.18}
svg .point{fill:var(--bad)}.shots figure{width:236px}.shots img{width:100%;display:block;border-radius:3px}
.good{color:var(--good)}.bad{color:var(--bad)}.look{color:var(--look)}
@media print{h2{break-after:avoid}figure{break-inside:avoid}}
"""


# ---- words and tables


def _text(value: object) -> str:
    return html.escape(str(value))


def _groups(dataset: Dataset) -> str:
    parts = len({item.group for item in dataset.items})
    if dataset.groups_known:
        return f"{len(dataset.items)} images of {parts} parts."
    return f"{len(dataset.items)} images; which show the same part is not known, so the intervals are too narrow."


def _sentences(judged: Judged) -> list[str]:
    metrics = judged.metrics
    lines = judged.sentences()
    asked = judged.manifest.risk.asked
    doubt = "" if judged.dataset.groups_known else ", if each of them shows another part"
    for what, found, limit in (
        ("good parts are rejected", metrics.false_reject_rate, asked.max_false_reject),
        ("defective parts slip through", metrics.escape_rate, asked.max_escape),
    ):
        if found.value is None:
            continue
        if found.high <= limit:
            lines.append(f"Asked was that at most {limit:.1%} of {what}: these images prove it{doubt}.")
        elif found.low > limit:
            lines.append(f"Asked was that at most {limit:.1%} of {what}: these images show that it is not kept{doubt}.")
        else:
            lines.append(
                f"Asked was that at most {limit:.1%} of {what}: {found.n} images are too few to tell, it may be "
                f"anything between {found.low:.1%} and {found.high:.1%}."
            )
    return lines


def _figures(judged: Judged) -> str:
    metrics, labels, parts = judged.metrics, judged.dataset.labels, judged.dataset.groups
    probabilities = judged.probabilities
    known = np.isfinite(probabilities)
    n = int(known.sum())
    rows: list[tuple[str, str, str, int]] = []
    if metrics.auroc is not None and metrics.detection_at_2pct_fr is not None:
        _, low, high = area_with_interval(labels[known], probabilities[known], parts[known], 0)
        rows.append(("AUROC", f"{metrics.auroc:.3f}", f"{low:.3f} to {high:.3f}", n))
        bad = labels & known
        count = int(bad.sum())
        effect = design_effect(probabilities[bad], parts[bad])
        found = rate(round(metrics.detection_at_2pct_fr * count), count, effect)
        rows.append(("defects found when 2 % of the good parts are rejected", *_interval(found)))
    rows.append(("false rejects: good parts that fail", *_interval(metrics.false_reject_rate)))
    rows.append(("escapes: defective parts that pass", *_interval(metrics.escape_rate)))
    review = np.array([verdict.decision not in {Decision.PASS, Decision.FAIL} for verdict in judged.verdicts], bool)
    rows.append(("review: parts a person looks at", *_interval(rate_of_parts(review, probabilities, parts))))
    rows.append(("calibration error (ECE)", f"{metrics.ece:.3f}" if n else "-", "", n))
    rows.append(("milliseconds for an image", f"{metrics.ms_per_image:.1f}", "", len(labels)))
    caption = "n counts images; intervals are for other parts, so that more images of the same parts narrow them less"
    return _table(("figure", "value", "95 % interval", "n"), rows, caption)


def _interval(found: Rate) -> tuple[str, str, int]:
    value = "-" if found.value is None else f"{found.value:.1%}"
    return value, f"{found.low:.1%} to {found.high:.1%}" if found.n else "-", found.n


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    title = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f"<table>{title}<tr>{top}</tr>{cells}</table>"


def _verdict_table(judged: Judged) -> str:
    labels = judged.dataset.labels
    decisions = [verdict.decision for verdict in judged.verdicts]
    rows = []
    for name, label in (("good", False), ("defective", True)):
        mine = [decision for decision, is_defect in zip(decisions, labels, strict=True) if bool(is_defect) == label]
        rows.append((name, *(mine.count(kind) for kind in (Decision.PASS, Decision.REVIEW, Decision.FAIL))))
    return _table(("labelled", "pass", "review", "fail"), rows, "What was said about how many images")


def _type_table(judged: Judged) -> str:
    rows = []
    for kind, count in sorted(judged.dataset.defect_types.items()):
        mine = [v for v, item in zip(judged.verdicts, judged.dataset.items, strict=True) if item.defect_type == kind]
        escaped = judged.metrics.missed_by_type[kind]
        named = sum(verdict.defect_type == kind for verdict in mine)
        parts = len({item.group for item in judged.dataset.items if item.defect_type == kind})
        rows.append((kind, count, parts, *_interval(escaped)[:2], f"{named / count:.0%}"))
    head = ("type", "images", "parts", "escape", "95 % interval", "named right")
    return _table(head, rows, "By type of defect") if rows else ""


# ---- plots


def _plots(judged: Judged) -> list[str]:
    known = np.isfinite(judged.probabilities)
    labels, probabilities = judged.dataset.labels[known], judged.probabilities[known]
    if not known.any():
        return []
    plots = [_reliability(labels, probabilities), _risk_coverage(labels, probabilities)]
    if 0 < labels.sum() < len(labels):
        plots.append(_roc(labels, probabilities, judged.manifest))
    return plots


def _x(value: float) -> float:
    return MARGIN + value * (WIDTH - MARGIN - 20)


def _y(value: float) -> float:
    return HEIGHT - MARGIN + 8 - value * (HEIGHT - MARGIN - 8)


def _plot(body: str, name: str, axes: tuple[str, str], caption: str, *, top: float = 1.0) -> str:
    """Frame a plot: ticks 0..1 across and 0..``top`` upwards."""
    lines = []
    x, y = axes
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(f'<line class="grid" x1="{_x(tick):.1f}" y1="{_y(0):.1f}" x2="{_x(tick):.1f}" y2="{_y(1):.1f}"/>')
        lines.append(f'<line class="grid" x1="{_x(0):.1f}" y1="{_y(tick):.1f}" x2="{_x(1):.1f}" y2="{_y(tick):.1f}"/>')
        lines.append(f'<text x="{_x(tick):.1f}" y="{_y(0) + 14:.1f}" text-anchor="middle">{100 * tick:g} %</text>')
        lines.append(
            f'<text x="{_x(0) - 5:.1f}" y="{_y(tick) + 4:.1f}" text-anchor="end">{100 * tick * top:.3g} %</text>'
        )
    lines.append(f'<text x="{_x(0.5):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{_text(x)}</text>')
    lines.append(f'<text transform="translate(10 {_y(0.5):.1f}) rotate(-90)" text-anchor="middle">{_text(y)}</text>')
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{_text(name)}">{"".join(lines)}{body}</svg>'
        f"<figcaption><b>{_text(name)}.</b> {_text(caption)}</figcaption></figure>"
    )


def _path(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    points = " ".join(f"{_x(float(x)):.1f},{_y(float(y)):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="curve" points="{points}"/>'


def _reliability(labels: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> str:
    index = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    body = [f'<line class="ideal" x1="{_x(0):.1f}" y1="{_y(0):.1f}" x2="{_x(1):.1f}" y2="{_y(1):.1f}"/>']
    for number in range(BINS):
        mine = index == number
        count = int(mine.sum())
        if not count:
            continue
        found = rate(int(labels[mine].sum()), count)
        stated, observed = float(probabilities[mine].mean()), found.value or 0.0
        x = _x(stated)
        body.append(f'<line class="bar" x1="{x:.1f}" y1="{_y(found.low):.1f}" x2="{x:.1f}" y2="{_y(found.high):.1f}"/>')
        body.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{_y(observed):.1f}" r="4"><title>n={count}: said {stated:.1%}, '
            f"were {observed:.1%}</title></circle>"
        )
    caption = "Where it says 30 %, 30 in 100 should be defective: points on the dashed line are true. Bars: 95 %."
    return _plot("".join(body), "Reliability", ("stated defect probability", "share that is defective"), caption)


def _risk_coverage(labels: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> str:
    """Draw the share of errors when only the surest answers are given, over the share of parts that get one."""
    sure = np.maximum(probabilities, 1 - probabilities)
    order = np.argsort(-sure, kind="stable")
    wrong = ((probabilities >= 0.5) != labels)[order]
    n = len(wrong)
    coverage = np.arange(1, n + 1) / n
    risk = np.cumsum(wrong) / np.arange(1, n + 1)
    top = max(0.01, float(np.ceil(100 * risk[n // 20 :].max()) / 100))
    shown = np.unique(np.linspace(0, n - 1, 300).astype(int))
    area = float(risk.mean())
    caption = f"When the least sure answers go to a person, how many of the others are wrong? Mean {area:.2%}, n={n}."
    return _plot(
        _path(coverage[shown], np.minimum(risk[shown] / top, 1)),
        "Risk and coverage",
        ("share of parts that get an answer", "share of wrong answers"),
        caption,
        top=top,
    )


def _roc(labels: NDArray[np.bool_], probabilities: NDArray[np.float64], manifest: Manifest) -> str:
    order = np.argsort(-probabilities, kind="stable")
    last = np.append(np.diff(probabilities[order]) != 0, True)  # equal scores are one step
    found = np.concatenate([[0.0], (np.cumsum(labels[order]) / labels.sum())[last]])
    rejected = np.concatenate([[0.0], (np.cumsum(~labels[order]) / (~labels).sum())[last]])
    body = [
        f'<line class="ideal" x1="{_x(0):.1f}" y1="{_y(0):.1f}" x2="{_x(1):.1f}" y2="{_y(1):.1f}"/>',
        _path(rejected, found),
    ]
    for name, limit in (("fail", manifest.thresholds.fail_from), ("review", manifest.thresholds.pass_below)):
        x = float((probabilities[~labels] >= limit).mean())
        y = float((probabilities[labels] >= limit).mean())
        body.append(f'<circle class="point" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="5"/>')
        anchor, dx = ("end", -9) if x > 0.6 else ("start", 9)
        body.append(f'<text x="{_x(x) + dx:.1f}" y="{_y(y) + 14:.1f}" text-anchor="{anchor}">from here {name}</text>')
    caption = "Each point is a threshold: more defects found, more good parts rejected. Dots: the bundle's own."
    return _plot("".join(body), "ROC", ("good parts above the threshold", "defects above it"), caption)


# ---- pictures


def _gallery(judged: Judged, *, escapes: bool) -> str:
    """Show the mistakes it was surest of, each beside its heat-map."""
    wanted = Decision.PASS if escapes else Decision.FAIL
    wrong = [
        (item, verdict)
        for item, verdict in zip(judged.dataset.items, judged.verdicts, strict=True)
        if item.defective == escapes and verdict.decision is wanted
    ]
    if not wrong:
        return f'<p class="good">None among {judged.metrics.n_defect if escapes else judged.metrics.n_good} images.</p>'
    wrong.sort(key=lambda pair: -pair[1].confidence)
    more = f'<p class="quiet">{len(wrong)} in all, the surest {WORST} shown.</p>' if len(wrong) > WORST else ""
    shots = "".join(_shot(item, verdict, judged.manifest) for item, verdict in wrong[:WORST])
    return f'{more}<div class="row shots">{shots}</div>'


def _shot(item: Item, verdict: Verdict, manifest: Manifest) -> str:
    kind = f"{item.defect_type or 'defective'}" if item.defective else "good"
    try:
        data = _thumbnail(item, verdict, manifest)
        picture = f'<img alt="{_text(item.file)}" src="data:image/jpeg;base64,{data}">'
    except ImageFileError:
        picture = "<p>The file was moved or changed after it was judged.</p>"
    return (
        f"<figure>{picture}"
        f"<figcaption>{_text(item.file)}<br>labelled {_text(kind)}, {verdict.decision.value} with "
        f"{verdict.confidence:.1%}</figcaption></figure>"
    )


def _thumbnail(item: Item, verdict: Verdict, manifest: Manifest) -> str:
    """Draw the picture, with the heat-map over it below where there is one; raises `ImageFileError`."""
    image = read_source(item.source)
    image = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    rows, columns = image.shape[:2]
    factor = THUMBNAIL_PX / max(rows, columns)
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR))
    if verdict.heatmap is not None and verdict.heatmap.size > 1:
        x, y, width, height = manifest.input.roi or (0.0, 0.0, 1.0, 1.0)
        left, top = round(x * size[0]), round(y * size[1])
        right, bottom = max(left + 1, round((x + width) * size[0])), max(top + 1, round((y + height) * size[1]))
        heat = cv2.resize(np.asarray(verdict.heatmap, np.float32), (right - left, bottom - top))
        alpha = 0.65 * np.clip(heat, 0, 1)[:, :, None]
        over = small.astype(np.float32)
        red = np.array([235.0, 40.0, 30.0])
        over[top:bottom, left:right] = (1 - alpha) * over[top:bottom, left:right] + alpha * red
        axis = 1 if size[0] < size[1] else 0
        small = np.concatenate([small, over.astype(np.uint8)], axis=axis)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return base64.b64encode(data.tobytes()).decode()
