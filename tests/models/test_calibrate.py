from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from lineward.models.calibrate import choose_thresholds, fit_platt, fit_ranks
from lineward.models.metrics import (
    auroc,
    calibration_error,
    design_effect,
    detection_at,
    measure,
    rate,
    rate_of_parts,
)
from lineward.models.records import Risk
from lineward.models.verdict import Decision


def known(seed: int = 0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    scores = random.normal(0, 2, n)
    return scores, random.random(n) < expit(1.5 * scores - 2)


def test_platt_finds_the_true_curve() -> None:
    """On data drawn from a logistic curve the curve is found again, and the error of calibration is small."""
    scores, labels = known()
    platt = fit_platt(scores, labels)
    assert platt.slope == pytest.approx(1.5, rel=0.05)
    assert platt.offset == pytest.approx(-2, rel=0.05)
    assert calibration_error(labels, platt(scores)) < 0.01


def test_platt_stays_finite_and_rising() -> None:
    """Separable scores give no infinite slope, scores the wrong way round no falling one."""
    labels = np.array([False] * 20 + [True] * 10)
    sharp = fit_platt(labels * 2.0 - 1, labels)
    assert 0.01 < sharp(np.array([-1.0]))[0] + 0.01 < 0.2
    assert sharp(np.array([1.0]))[0] < 0.99
    assert fit_platt(1.0 - labels, labels).slope > 0
    assert np.isfinite(fit_platt(np.zeros(30), labels)(np.zeros(3))).all()


def test_ranks_are_shares_of_good_parts() -> None:
    """The anomaly of a part is the share of good parts that look more usual, and rises to one far outside."""
    scores = np.random.default_rng(1).gamma(3, 1, 500)
    ranks = fit_ranks(scores)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert ranks(np.quantile(scores, [share]))[0] == pytest.approx(share, abs=0.02)
    far = ranks(np.array([scores.max(), scores.max() * 1.2, scores.max() * 5, -1.0]))
    assert 0.99 < far[0] < far[1] <= far[2] == 1.0
    assert far[3] == 0.0
    assert (np.diff(ranks(np.linspace(-1, 40, 2000))) >= 0).all()
    assert fit_ranks(np.ones(12))(np.array([0.5, 2.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "asked", "shares"),
    [
        (np.zeros(100), [0.0, 1.0], [0.0, 1.0]),
        (np.append(np.zeros(95), np.arange(1.0, 6.0)), [0.0, 5.0], [0.0, 0.995]),
        (np.append(np.arange(70.0), np.full(30, 100.0)), [100.0, 101.0], [0.7, 0.995]),
    ],
    ids=["all_equal", "most_have_the_least", "many_have_the_most"],
)
def test_a_shared_score_is_no_more_unusual_than_itself(
    scores: np.ndarray,  # type: ignore[type-arg]
    asked: list[float],
    shares: list[float],
) -> None:
    """Rule: of good parts with one score none is unusual for the others; what lies above all of them is."""
    assert fit_ranks(scores)(np.array(asked)) == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_keep_the_stated_risk(seed: int) -> None:
    """False rejects stay within the asked share; escapes do, unless the review cap is reached first."""
    scores, labels = known(seed, 3000)
    probabilities = fit_platt(scores, labels)(scores)
    risk = Risk(max_false_reject=0.02, max_escape=0.05, max_review=0.3)
    bands, promise = choose_thresholds(probabilities, labels, risk, np.arange(len(labels)))
    good, defect = probabilities[~labels], probabilities[labels]
    assert (good >= bands.fail_from).mean() <= 0.02
    assert bands.pass_below <= 0.5 <= bands.fail_from
    band = ((good >= bands.pass_below) & (good < bands.fail_from)).mean()
    assert band <= 0.3
    assert promise.escape.value == pytest.approx((defect < bands.pass_below).mean())
    assert promise.false_reject.value == pytest.approx((good >= bands.fail_from).mean())
    assert (defect < bands.pass_below).mean() <= 0.05 or band > 0.28
    assert promise.kept == ((defect < bands.pass_below).mean() <= 0.05)


def test_what_the_data_cannot_support_is_said() -> None:
    """Perfect scores on a few images keep the risk but promise nothing: the interval is too wide, and that is said."""
    labels = np.array([False] * 30 + [True] * 10)
    probabilities = np.where(labels, 0.9, 0.1)
    bands, promise = choose_thresholds(probabilities, labels, Risk(), np.arange(len(labels)))
    assert promise.kept
    assert not promise.supported
    assert "too few images" in promise.text
    assert 0.1 < bands.pass_below <= bands.fail_from < 0.9
    _, overlapping = choose_thresholds(np.linspace(0.2, 0.8, 40), labels, Risk(max_review=0), np.arange(40))
    assert overlapping.false_reject.value == 0
    _, mixed = choose_thresholds(np.tile([0.2, 0.8], 20), labels, Risk(max_review=0.0), np.arange(40))
    assert "overlap" in mixed.text


def test_intervals_are_exact() -> None:
    """Clopper-Pearson, against tabulated values."""
    assert rate(0, 100).high == pytest.approx(0.0362, abs=1e-4)
    assert rate(0, 100).low == 0
    assert (rate(5, 50).low, rate(5, 50).high) == pytest.approx((0.0333, 0.2181), abs=1e-4)
    assert rate(7, 7).high == 1
    assert rate(0, 0).value is None


def test_figures_by_hand() -> None:
    """AUROC with ties, detection at an allowed share of false rejects, calibration error, shares of decisions."""
    labels = np.array([False, False, False, True, True])
    scores = np.array([0.1, 0.2, 0.6, 0.6, 0.9])
    assert auroc(labels, scores) == pytest.approx(5.5 / 6)
    assert detection_at(labels, scores, 0.02) == 0.5
    assert detection_at(labels, scores, 0.34) == 1.0
    assert calibration_error(np.array([True, False]), np.array([0.95, 0.95])) == pytest.approx(0.45)
    said = [Decision.PASS, Decision.FAIL, Decision.REVIEW, Decision.PASS, Decision.REVIEW]
    metrics = measure(labels, scores, said, 1.0, parts=np.arange(len(labels)))
    assert metrics.false_reject_rate.value == pytest.approx(1 / 3)
    assert metrics.escape_rate.value == pytest.approx(1 / 2)
    assert metrics.review_share == pytest.approx(2 / 5)
    assert measure(labels[:3], scores[:3], said[:3], 1.0, parts=np.arange(3)).auroc is None


@pytest.mark.parametrize("none", [np.nan, np.inf])
def test_what_is_no_number_is_a_review_and_nothing_else(none: float) -> None:
    """Rule: such an image counts in every share and changes neither AUROC, detection nor calibration error."""
    labels = np.array([False, False, False, True, True])
    scores = np.array([0.1, 0.2, 0.6, 0.6, 0.9])
    said = [Decision.PASS, Decision.FAIL, Decision.REVIEW, Decision.PASS, Decision.REVIEW]
    plain = measure(labels, scores, said, 1.0, parts=np.arange(5))
    found = measure(
        np.append(labels, [False, True]),
        np.append(scores, [none, none]),
        [*said, Decision.REVIEW, Decision.REVIEW],
        1.0,
        parts=np.arange(7),
    )
    assert (found.auroc, found.detection_at_2pct_fr, found.ece) == (plain.auroc, plain.detection_at_2pct_fr, plain.ece)
    assert (found.n_good, found.n_defect) == (4, 3)
    assert (found.false_reject_rate.value, found.escape_rate.value) == pytest.approx((1 / 4, 1 / 3))
    assert found.review_share == pytest.approx(4 / 7)
    nothing = measure(labels, np.full(5, none), [Decision.REVIEW] * 5, 1.0, parts=np.arange(5))
    assert (nothing.auroc, nothing.detection_at_2pct_fr, nothing.ece) == (None, None, 0.0)
    assert nothing.review_share == 1.0


def test_pictures_of_one_part_that_are_no_numbers_say_the_same() -> None:
    """Rule: they make an interval no wider than pictures of one part that are told apart from other parts."""
    parts = np.repeat(np.arange(100), 6)
    scores = np.random.default_rng(0).random(600)
    scores[:6] = np.nan
    assert design_effect(scores, parts) == pytest.approx(1, abs=0.3)


def test_pictures_of_one_part_are_not_taken_for_parts() -> None:
    """Rule: the interval is about other parts: six pictures of one that say the same count as one picture."""
    random = np.random.default_rng(0)
    parts = np.repeat(np.arange(100), 6)
    alike = np.repeat(random.random(100), 6)
    assert design_effect(alike, parts) == pytest.approx(6)
    assert design_effect(random.random(600), parts) == pytest.approx(1, abs=0.3)
    assert design_effect(alike[::6], np.arange(100)) == 1
    assert design_effect(alike, np.zeros(600)) == 600
    hits = alike > 0.9
    found, by_part = rate_of_parts(hits, alike, parts), rate(int(hits[::6].sum()), 100)
    assert (found.n, found.value) == (600, by_part.value)
    assert (found.low, found.high) == pytest.approx((by_part.low, by_part.high))
    assert rate_of_parts(hits & False, alike, parts).high == pytest.approx(rate(0, 100).high)


def test_a_score_that_many_parts_share_ranks_the_same_when_it_is_rounded() -> None:
    """Rule: a quantile beside a shared score makes no step on which the graph's rounding decides the rank."""
    random = np.random.default_rng(4)
    for n in range(20, 120):
        scores = 0.1 + 0.07 * random.integers(0, 6, n).astype(float)
        ranks = fit_ranks(scores)
        assert np.abs(ranks(scores + 1e-6) - ranks(scores)).max() < 1e-3


def test_a_few_odd_parts_are_not_taken_for_many_pictures() -> None:
    """Rule: where some parts fail as a whole and the others' pictures differ freely, the stated bound holds as well."""
    random = np.random.default_rng(2)
    parts, broken = np.repeat(np.arange(60), 6), 0
    for _ in range(200):
        odd = np.repeat(random.random(60) < 0.1, 6)  # a tenth of all parts there will ever be
        broken += rate_of_parts(odd, random.normal(size=360) + 4 * odd, parts).high < 0.1
    assert broken <= 10, broken


def test_a_stated_bound_holds_for_other_parts() -> None:
    """Rule: of lines whose pictures come in sixes, at most a few have a true share above the bound that was stated."""
    random = np.random.default_rng(1)
    broken = 0
    for _ in range(200):
        scores = np.repeat(random.normal(size=60), 6) + 0.3 * random.normal(size=360)
        hits = scores > 1.5 * np.sqrt(1.09)  # 6.68 % of all pictures there will ever be
        broken += rate_of_parts(hits, scores, np.repeat(np.arange(60), 6)).high < 0.0668
    assert broken <= 10, broken
