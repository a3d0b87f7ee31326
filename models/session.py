"""Judge images with a bundle: ONNX Runtime, explicit providers, warm-up, and the time each step takes."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime

from lineward.models.bundle import BundleError, load_bundle
from lineward.models.prepare import prepare
from lineward.models.verdict import Decision, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lineward.models.verdict import Thresholds

CPU = "CPUExecutionProvider"


class Outputs(NamedTuple):
    """What the graph says about a batch of one, float32 arrays as ONNX Runtime gave them.

    ``defect_probability`` (1,), ``anomaly`` (1,), ``heatmap`` (1, h, w), all 0..1; ``defect_type_scores`` (1, types),
    the higher the likelier, or None when no types were named.
    """

    defect_probability: NDArray[np.float32]
    anomaly: NDArray[np.float32]
    heatmap: NDArray[np.float32]
    defect_type_scores: NDArray[np.float32] | None = None


class Session:
    """A loaded bundle. One at a time per process: ONNX Runtime does not return memory to the system on reloading.

    Parameters
    ----------
    path
        A bundle file; it is verified before anything in it is used.
    providers
        Execution providers in order of wish. The CPU is always there as the last resort.
    intra_op_threads
        Threads of one inference.
    roi, thresholds
        Instead of the bundle's own.
    spinning
        Whether waiting threads burn their core; faster by a little, but the camera process may need that core.

    Attributes
    ----------
    manifest, sha256
        The bundle's manifest, and the SHA-256 of the whole file, hexadecimal.
    providers, missing_providers
        What ONNX Runtime really uses, and what was wished for but is not there: a reason for an alarm.

    Raises
    ------
    BundleError
        The file cannot be used; one line that names it and says what to do.
    """

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str] = (CPU,),
        intra_op_threads: int = 2,
        spinning: bool = False,
        roi: tuple[float, float, float, float] | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        bundle = load_bundle(path)
        self._path = path
        self.manifest = bundle.manifest
        self.sha256 = bundle.sha256
        self._spec = bundle.manifest.input if roi is None else bundle.manifest.input.model_copy(update={"roi": roi})
        self._thresholds = thresholds or bundle.manifest.thresholds.thresholds()
        self._types = bundle.manifest.defect_types
        self._names = [name for name in Outputs._fields if name != "defect_type_scores" or self._types]
        available = onnxruntime.get_available_providers()
        usable = [name for name in providers if name in available]
        try:
            self._session = self._open(
                bundle.data, [*usable, *([] if CPU in usable else [CPU])], intra_op_threads, spinning
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path}: ONNX Runtime does not accept the model: {reason}; train it again") from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.missing_providers: tuple[str, ...] = tuple(name for name in providers if name not in self.providers)

    @staticmethod
    def _open(model: bytes, providers: list[str], threads: int, spinning: bool) -> Any:  # noqa: FBT001 - private
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        return onnxruntime.InferenceSession(model, options, providers=providers)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a prepared image."""
        return self._spec.height, self._spec.width, self._spec.channels

    def warm_up(self, runs: int = 3) -> float:
        """Judge a few grey images, so that the first part does not pay for first-use allocations.

        Returns the milliseconds of the quickest. Raises `BundleError` when the model cannot be run.
        """
        grey = np.full(self.input_shape, 127, np.uint8)
        took = []
        for _ in range(runs):
            began = perf_counter()
            try:
                self.run(grey)
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types
                reason = str(error).splitlines()[0]
                raise BundleError(
                    f"{self._path}: ONNX Runtime cannot run the model: {reason}; train or import it again"
                ) from error
            took.append(1e3 * (perf_counter() - began))
        return min(took)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop, convert and resize as the manifest says; see `lineward.models.prepare.prepare`."""
        return prepare(image, self._spec)

    def run(self, prepared: NDArray[np.uint8]) -> Outputs:
        """Run the graph on one prepared image ``(height, width, channels)`` uint8."""
        return Outputs(*self._session.run(self._names, {"image": prepared[np.newaxis]}))

    def judge(self, image: NDArray[np.uint8]) -> Verdict:
        """Judge one image.

        Parameters
        ----------
        image
            ``(H, W)`` mono or ``(H, W, 3)`` RGB uint8, of any size.

        Returns
        -------
        Verdict
            With heat-map over the region of interest and the milliseconds each step took.

        Raises
        ------
        ValueError
            The array is not such an image.
        """
        started = perf_counter()
        prepared = self.prepare(image)
        ready = perf_counter()
        outputs = self.run(prepared)
        inferred = perf_counter()
        probability = float(outputs.defect_probability[0])
        anomaly = float(outputs.anomaly[0])
        decision, reason, confidence = decide(probability, anomaly, self._thresholds)
        scores = outputs.defect_type_scores
        named = scores is not None and decision is not Decision.PASS
        return Verdict(
            decision,
            reason,
            confidence,
            probability,
            anomaly,
            defect_type=self._types[int(np.argmax(scores))] if scores is not None and named else None,
            heatmap=outputs.heatmap[0],
            prepare_ms=(ready - started) * 1e3,
            infer_ms=(inferred - ready) * 1e3,
            decide_ms=(perf_counter() - inferred) * 1e3,
        )
