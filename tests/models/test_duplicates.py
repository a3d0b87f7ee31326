from __future__ import annotations

import numpy as np

from lineward.models.duplicates import group_near_duplicates


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
