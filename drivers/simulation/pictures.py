"""The pictures a simulated camera takes: which product comes along, how it is seen, and what was really there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

from lineward.drivers import progress
from lineward.drivers.simulation.scene import Renderer, chance, truth
from lineward.drivers.simulation.settings import NOMINAL_EXPOSURE_US

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from lineward.drivers.camera import Setting
    from lineward.drivers.simulation.faults import FaultScript
    from lineward.drivers.simulation.scene import Truth


_SHAPE = ("Width", "Height", "PixelFormat")
_DRAWING_S = 60.0
"""One product at 50 megapixels on a busy machine."""


class Pictures:
    """Draws frames under the camera's settings and its script of faults.

    Parameters
    ----------
    product
        What comes along until `prepare` is told otherwise.
    prerender
        When above 0, so many frames are drawn in `prepare` and shown in turn.
    """

    def __init__(self, product: str, *, seed: int, defect_rate: float, script: FaultScript, prerender: int) -> None:
        self._seed, self._defect_rate = seed, defect_rate
        self._script, self._prerender = script, prerender
        self._orders = [(0, product)]  # from which frame on which product comes along
        self._settings: dict[str, Setting] = {}
        self._renderers: dict[str, Renderer] = {}
        self._gallery: list[NDArray[np.uint8]] = []
        self._ready: tuple[int, NDArray[np.uint8]] | None = None

    def order(self, index: int, product: str) -> None:
        """Let another product come along from a frame on that has not been drawn yet."""
        while self._orders and self._orders[-1][0] >= index:
            self._orders.pop()
        if not self._orders or self._orders[-1][1] != product:
            self._orders.append((index, product))

    def truth(self, index: int) -> Truth:
        """Say what is really on a frame without drawing it."""
        shown = index % self._prerender if self._prerender else index
        product = self._product(index)
        known = truth(shown, product=product, seed=self._seed, defect_rate=self._defect_rate)
        luck = chance(shown, product=product, seed=self._seed)
        defect, severity = self._script.defect(shown, known.defect_type, known.severity, luck)
        return replace(known, defect_type=defect, severity=severity)

    def prepare(self, settings: Mapping[str, Setting]) -> None:
        """Draw what does not change from frame to frame, unless it is there already."""
        if self._settings == settings:
            return
        if any(self._settings.get(name) != settings[name] for name in _SHAPE):
            self._renderers = {}  # a product that was on the line before comes back without a wait
        for name in self._script.products(str(settings["Product"])) - self._renderers.keys():
            with progress.phase(f"drawing {name}", still_s=_DRAWING_S):
                self._renderers[name] = self._renderer(name, settings)
        self._settings, self._gallery, self._ready = dict(settings), [], None
        for index in range(self._prerender):
            with progress.phase(f"drawing frame {index}", still_s=_DRAWING_S):
                self._gallery.append(self._draw(index, str(settings["Product"])))

    def _renderer(self, name: str, settings: Mapping[str, Setting]) -> Renderer:
        return Renderer(
            name,
            seed=self._seed,
            width=int(settings["Width"]),
            height=int(settings["Height"]),
            defect_rate=self._defect_rate,
            pixel_format=cast("Literal['Mono8', 'RGB8']", settings["PixelFormat"]),
        )

    def take(self, index: int) -> NDArray[np.uint8]:
        """Draw a frame, once: one drawn ahead of its time is kept until it is due; read-only."""
        if self._gallery:
            return self._gallery[index % len(self._gallery)]
        if self._ready is None or self._ready[0] != index:
            self._ready = (index, self._draw(index, self._product(index)))
        return self._ready[1]

    def forget(self) -> None:
        """Give the memory back."""
        self._settings, self._renderers, self._gallery, self._ready = {}, {}, [], None

    def _product(self, index: int) -> str:
        """Say which product really comes along."""
        ordered = next((product for first, product in reversed(self._orders) if first <= index), self._orders[0][1])
        return self._script.product(index, ordered)

    def _draw(self, index: int, product: str) -> NDArray[np.uint8]:
        exposure = float(self._settings["ExposureTime"]) / NOMINAL_EXPOSURE_US
        gain = 10 ** (float(self._settings["Gain"]) / 20)
        view = self._script.view(index, exposure=exposure, gain=gain)
        known = self.truth(index)
        severity = known.severity if known.defect_type else None
        image, _ = self._renderers[product].render(
            index, defect=known.defect_type or "none", severity=severity, view=view
        )
        image.flags.writeable = False
        return image
