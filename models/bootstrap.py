"""A start for a product without any real defect: heads that learn from made-up ones, beside the good parts alone.

Pictures are made at the size of the model's input, each from good images of one fold, so that no head has seen the
parts that it judges. They live in a scratch folder and never stand where figures are taken. See
`lineward.models.synthetic` for what is made, and docs/decisions/0022 for what it brings.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lineward.images import read_image
from lineward.models.dataset import DatasetError, read_dataset
from lineward.models.features import FeatureStore, Source, read_source
from lineward.models.prepare import prepare
from lineward.models.synthetic import SyntheticError, find_patches, synthetic_set

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lineward.models.backbone import Backbone
    from lineward.models.dataset import Item
    from lineward.models.prepare import InputSpec
    from lineward.models.synthetic import Patch

LEAST = 20
"""Made-up defects: heads fitted on fewer say nothing."""
MOST_PASTED = 400
"""Defective images of another product that pieces are cut from."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Pictures with made-up defects: pooled features ``(m, d)``, and ``(m,)`` the fold of the good parts on them."""

    pooled: NDArray[np.float32]
    folds: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes ``count`` pictures with defects from good ones; the same for the same images and seed.

    ``overlays`` is the training folder of a similar product, whose real defects are pasted as well.
    """

    count: int
    overlays: Path | None
    seed: int
    progress: Callable[[int, int], None]

    def make(
        self, backbone: Backbone, spec: InputSpec, items: Sequence[Item], threads: int, folds: NDArray[np.int64]
    ) -> MadeUp:
        """Make pictures from each fold of the good images ``items``, by its size; ``folds`` is ``(n,)``.

        Raises
        ------
        DatasetError
            Nothing visible can be made of these images, or the folder of overlays cannot be used.
        """
        library = self._library(spec)
        until = np.rint(np.cumsum(np.bincount(folds)) * self.count / len(folds)).astype(int)
        made: list[Source] = []
        fold_of: list[int] = []
        with tempfile.TemporaryDirectory(prefix="lineward-made-up-") as folder:
            for fold, number in enumerate(np.diff(until, prepend=0).tolist()):
                mine = (items[index].source for index in np.flatnonzero(folds == fold).tolist())
                images = [prepare(read_source(source), spec).squeeze() for source in mine]  # of one fold at a time
                try:
                    for picture in synthetic_set(images, number, 1000 * self.seed + fold, library=library):
                        made.append(_write(Path(folder), picture.image))
                        fold_of.append(fold)
                        self.progress(len(made), self.count)
                except SyntheticError as error:
                    raise DatasetError(f"--synthetic: {error}") from error
            whole = spec.model_copy(update={"roi": None})  # the region was cut out before
            pooled = FeatureStore(backbone, whole, Path(folder), threads=threads).extract(made)
        return MadeUp(pooled, np.array(fold_of, np.int64))

    def _library(self, spec: InputSpec) -> list[Patch]:
        if self.overlays is None:
            return []
        other = read_dataset(self.overlays, training=False)
        good = [item for item in other.items if not item.defective]
        defective = [item for item in other.items if item.defective][:MOST_PASTED]

        def image(item: Item) -> NDArray[np.uint8]:
            return prepare(read_image(item.source.path), spec).squeeze()

        try:
            found = find_patches(
                [image(item) for item in good[:60]], ((image(item), item.defect_type or "") for item in defective)
            )
        except SyntheticError as error:
            raise DatasetError(
                f"{self.overlays}: {error}; --overlays needs the good images of that product too"
            ) from error
        if not found:
            raise DatasetError(
                f"{self.overlays}: nothing stands out in its {len(defective)} defective images that could be pasted; "
                "leave --overlays out, or give the training folder of a more similar product"
            )
        return found


def _write(folder: Path, image: NDArray[np.uint8]) -> Source:
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest}.png"
    path.write_bytes(data)
    return Source(path, digest)
