"""The pictures a simulated camera takes: which product comes along, how it is seen, and what was really there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from lineward.drivers.simulation.scene import Renderer, truth
from lineward.drivers.simulation.settings import NOMINAL_EXPOSURE_US

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from lineward.drivers.camera import Setting
    from lineward.drivers.simulation.faults import FaultScript
    from lineward.drivers.simulation.scene import Truth


class Pictures:
    """Draws frames under the camera's settings and its script of faults.

    Parameters
    ----------
    prerender
        When above 0, so many frames are drawn in `prepare` and shown in turn.
    """

    def __init__(self, product: str, *, seed: int, defect_rate: float, script: FaultScript, prerender: int) -> None:
        self._product, self._seed, self._defect_rate = product, seed, defect_rate
        self._script, self._prerender = script, prerender
        self._settings: dict[str, Setting] = {}
        self._renderers: dict[str, Renderer] = {}
        self._gallery: list[NDArray[np.uint8]] = []
        self._ready: tuple[int, NDArray[np.uint8]] | None = None

    def truth(self, index: int) -> Truth:
        """Say what is really on a frame without drawing it."""
        shown = index % self._prerender if self._prerender else index
        product = self._script.product(index, self._product)
        return truth(shown, product=product, seed=self._seed, defect_rate=self._defect_rate)

    def prepare(self, settings: Mapping[str, Setting]) -> None:
        """Draw what does not change from frame to frame, unless it is there already."""
        if self._settings == settings:
            return
        self.forget()
        self._renderers = {
            name: Renderer(
                name,
                seed=self._seed,
                width=int(settings["Width"]),
                height=int(settings["Height"]),
                defect_rate=self._defect_rate,
                pixel_format=cast("Literal['Mono8', 'RGB8']", settings["PixelFormat"]),
            )
            for name in self._script.products(self._product)
        }
        self._settings = dict(settings)
        self._gallery = [self._draw(index) for index in range(self._prerender)]

    def take(self, index: int) -> NDArray[np.uint8]:
        """Draw a frame, once: one drawn ahead of its time is kept until it is due; read-only."""
        if self._gallery:
            return self._gallery[index % len(self._gallery)]
        if self._ready is None or self._ready[0] != index:
            self._ready = (index, self._draw(index))
        return self._ready[1]

    def forget(self) -> None:
        """Give the memory back."""
        self._settings, self._renderers, self._gallery, self._ready = {}, {}, [], None

    def _draw(self, index: int) -> NDArray[np.uint8]:
        exposure = float(self._settings["ExposureTime"]) / NOMINAL_EXPOSURE_US
        gain = 10 ** (float(self._settings["Gain"]) / 20)
        view = self._script.view(index, exposure=exposure, gain=gain)
        image, _ = self._renderers[self._script.product(index, self._product)].render(index, view=view)
        image.flags.writeable = False
        return image
