"""What a foreign model says about pictures, and how that becomes a probability, a rank and a heat-map's scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import mannwhitneyu

from lineward.images import read_image
from lineward.models.calibrate import Platt, Ranks, choose_thresholds, fit_platt, fit_ranks
from lineward.models.folds import fitting_folds, split_holdout
from lineward.models.foreign import ForeignModelError
from lineward.models.metrics import auroc, calibration_error, rate
from lineward.models.records import Bands, CalibrationRecord, Promise, Risk
from lineward.models.wrapping import Calibration, heat_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.dataset import Dataset
    from lineward.models.foreign import Declaration, Foreign

HOLDOUT_SHARE = 0.3
UNCALIBRATED = Bands(pass_below=0.1, fail_from=0.9, review_anomaly_from=1.0)
"""Without labelled images only the clearest scores become a pass or a fail."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the original said: ``scores``, and of its maps ``peaks`` and ``middles`` ``(n,)``, and ``blocks``."""

    scores: NDArray[np.float64]
    peaks: NDArray[np.float64]
    middles: NDArray[np.float64]
    blocks: list[NDArray[np.float64] | None]


def hear(foreign: Foreign, pictures: Sequence[Path], progress: Callable[[int], None]) -> tuple[Foreign, Heard]:
    """Judge pictures with the original; of its maps only what is compared later is kept."""
    rows: list[tuple[float, float, float]] = []
    blocks: list[NDArray[np.float64] | None] = []
    for done, file in enumerate(pictures, 1):
        score, _, anomaly_map = foreign.run(read_image(file), str(file))
        peak = middle = 0.0
        if anomaly_map is not None:
            foreign = replace(foreign, map_size=(anomaly_map.shape[0], anomaly_map.shape[1]))
            peak, middle = float(anomaly_map.max()), float(np.median(anomaly_map))
        rows.append((score, peak, middle))
        blocks.append(None if anomaly_map is None else _block_maxima(foreign, anomaly_map))
        progress(done)
    scores, peaks, middles = np.array(rows, np.float64).T
    return foreign, Heard(scores, peaks, middles, blocks)


def _block_maxima(foreign: Foreign, anomaly_map: NDArray[np.float64]) -> NDArray[np.float64]:
    side, rows, columns = heat_blocks(foreign)
    whole = np.full((rows * side, columns * side), -np.inf)
    whole[: anomaly_map.shape[0], : anomaly_map.shape[1]] = anomaly_map
    return np.asarray(whole.reshape(rows, side, columns, side).max(axis=(1, 3)), np.float64)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The calibration, what the manifest says of it, and which images of the data set it came from and which not."""

    calibration: Calibration
    record: CalibrationRecord
    promise: Promise
    train: NDArray[np.int64] | None = None
    held: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None


def calibrated(
    foreign: Foreign,
    dataset: Dataset,
    groups: NDArray[np.int64],
    heard: Heard,
    *,
    risk: Risk,
    seed: int,
) -> Fitted:
    """Fit calibration and thresholds on one side of a split by parts; the other side gives the figures."""
    labels = dataset.labels
    n = len(labels)
    scores, peaks, middles = heard.scores[:n], heard.peaks[:n], heard.middles[:n]
    _refuse_reversed(foreign, labels, scores)
    train, held = split_holdout(labels, groups, HOLDOUT_SHARE, seed)
    marks, values = labels[train], scores[train]
    folds = fitting_folds(marks, groups[train], seed)
    probabilities = np.empty(len(train))
    for fold in range(int(folds.max()) + 1):
        inside = folds != fold
        probabilities[~inside] = fit_platt(values[inside], marks[inside])(values[~inside])
    thresholds, promise = choose_thresholds(probabilities, marks, risk, groups[train])
    good = ~marks
    is_anomaly = foreign.kind == "anomaly"
    calibration = Calibration(
        platt=fit_platt(values, marks),
        ranks=fit_ranks(values[good]) if is_anomaly else None,
        **_heat(peaks[train][good], middles[train][good]),
        bands=Bands(
            pass_below=thresholds.pass_below,
            fail_from=thresholds.fail_from,
            review_anomaly_from=thresholds.review_anomaly_from if is_anomaly else 1.0,
        ),
    )
    record = CalibrationRecord(
        n=len(train),
        folds=int(folds.max()) + 1,
        defect_share=float(marks.mean()),
        ece=calibration_error(marks, probabilities),
    )
    return Fitted(calibration, record, promise, train, held, groups)


def _refuse_reversed(foreign: Foreign, labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
    if np.ptp(scores) == 0:
        raise ForeignModelError(
            f"{foreign.path}: gives {scores[0]:.3g} for every image of --data; --scaling, --colour or --layout is not "
            "what it was trained with"
        )
    area = auroc(labels, scores)
    if area < 0.5 and mannwhitneyu(scores[labels], scores[~labels], alternative="less").pvalue < 0.01:
        what = "the score may be higher for better parts" if foreign.kind == "anomaly" else "check --classes and --good"
        raise ForeignModelError(
            f"{foreign.path}: puts good images above defective ones (AUROC {area:.2f} over {len(labels)} images); "
            f"{what}, or the scaling is not the one it was trained with"
        )


def uncalibrated(foreign: Foreign, declared: Declaration, heard: Heard) -> Fitted:
    """Take the maker's limit, where there is one, for want of labels."""
    slope, offset, ranks = 1.0, 0.0, None
    if foreign.kind == "anomaly":
        if declared.threshold is None:
            raise ForeignModelError(
                f"{foreign.path}: from which score on is a part defective? give its maker's limit with --threshold, "
                "better labelled images with --data"
            )
        width = float(heard.scores.std()) or abs(declared.threshold) / 4 or 1.0
        slope, offset = 1 / width, -declared.threshold / width
        ranks = Ranks(np.array([declared.threshold - width, declared.threshold + width]), np.array([0.0, 1.0]))
    calibration = Calibration(
        platt=Platt(slope, offset), ranks=ranks, **_heat(heard.peaks, heard.middles), bands=UNCALIBRATED
    )
    none = rate(0, 0)
    promise = Promise(
        asked=Risk(),
        false_reject=none,
        escape=none,
        review_good=none,
        kept=False,
        supported=False,
        text="nothing is promised: imported without labelled images",
    )
    return Fitted(calibration, CalibrationRecord(n=0, folds=0, defect_share=0.0, ece=0.0), promise)


def _heat(peaks: NDArray[np.float64], middles: NDArray[np.float64]) -> dict[str, float]:
    """Place the heat-map at 0.5 where one good image in 20 gets to."""
    centre = float(np.quantile(peaks, 0.95))
    width = (centre - float(np.median(middles))) / 4
    return {"heat_centre": centre, "heat_width": max(width, 1e-6 * abs(centre), 1e-9)}
