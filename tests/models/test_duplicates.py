from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lineward.models.check_set import find_amounts
from lineward.models.dataset import Dataset, Item
from lineward.models.duplicates import GUESSED, UNKNOWN, group_near_duplicates, parts_of
from lineward.models.features import Source


def views(parts: int, each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(0)
    looks = random.normal(0, 1, (parts, 500))
    part = np.repeat(np.arange(parts), each)
    return (looks[part] + random.normal(0, noise, (len(part), 500))).astype(np.float32), part


def test_views_of_one_part_are_found() -> None:
    """Four noisy views of each of forty parts become forty groups again, without being told."""
    pooled, part = views(40, 4, 0.5)
    found = group_near_duplicates(pooled, np.arange(160), part % 2 == 0)
    pairs = (found[:, None] == found[None]) == (part[:, None] == part[None])
    assert pairs.all()


def test_views_of_good_parts_are_found_without_any_defect() -> None:
    """Rule: a product that has no defective part yet is asked about other parts too, not about other views."""
    pooled, part = views(40, 4, 0.5)
    found = group_near_duplicates(pooled, np.arange(160), np.zeros(160, bool))
    assert ((found[:, None] == found[None]) == (part[:, None] == part[None])).all()


def test_different_parts_stay_apart() -> None:
    """Images that only share the product are not one part."""
    pooled, part = views(60, 1, 0.5)
    assert len(set(group_near_duplicates(pooled, np.arange(60), part % 2 == 0).tolist())) == 60


def test_what_is_known_to_belong_together_does() -> None:
    """Two copies are one group however the features came out; too few groups to split leave things as they were."""
    pooled, part = views(30, 2, 0.5)
    known = part.copy()
    found = group_near_duplicates(pooled, known, part % 2 == 0)
    assert all(len(set(found[known == number].tolist())) == 1 for number in set(known.tolist()))
    same = np.repeat(pooled[:1], 12, axis=0)
    assert (group_near_duplicates(same, np.arange(12), np.arange(12) < 4) == np.arange(12)).all()


def without_table(count: int) -> Dataset:
    """Return a set of images, every other one defective, about whose parts nothing is known."""
    items = tuple(
        Item(f"{n}.png", Source(Path(f"{n}.png"), str(n)), "spot" if n % 2 else None, f"content {n:03d}", mono=True)
        for n in range(count)
    )
    return Dataset(Path("set"), items, groups_known=False, warnings=("no table",))


def test_it_is_said_whether_likeness_told_the_parts() -> None:
    """Rule: where nothing could be guessed, nobody reads that it was, but that figures are too good."""
    pooled, _ = views(40, 4, 0.5)
    dataset = without_table(160)
    groups, warnings = parts_of(dataset, pooled)
    assert len(set(groups.tolist())) == 40
    assert warnings == ("no table", GUESSED)

    groups, warnings = parts_of(replace(dataset, warnings=warnings), np.repeat(pooled[:1], 160, axis=0))
    assert len(set(groups.tolist())) == 160
    assert warnings == ("no table", UNKNOWN)
    assert "too good" in UNKNOWN
    told = {finding.id: finding.text for finding in find_amounts(replace(dataset, warnings=warnings), groups)}
    assert told["groups"] == UNKNOWN
