"""How long the frame of a given-up trigger may still come: too short a time would judge it as the next part's."""

import pytest

from lineward.drivers.late import longest_s

MARGIN_S = 0.25


@pytest.mark.parametrize(
    ("features", "seconds"),
    [
        ({}, 0.0),
        ({"ExposureTime": 400_000.0}, 0.4),
        ({"ExposureTimeAbs": 400_000.0, "TriggerDelayAbs": 50_000.0}, 0.45),
        ({"ExposureTime": 1000.0, "TriggerDelay": 9000.0, "SensorReadoutTime": 40_000.0}, 0.05),
        ({"PayloadSize": 20_000_000}, 0.5),
        ({"PayloadSize": 20_000_000, "DeviceLinkThroughputLimit": 10_000_000}, 2.0),
        ({"PayloadSize": 20_000_000, "DeviceLinkThroughputLimit": 400_000_000}, 0.5),
        ({"PayloadSize": 20_000_000, "DeviceLinkThroughputLimit": 0}, 0.5),
    ],
)
def test_what_the_camera_says_is_added_up(features, seconds):
    """Exposure, delay, readout, and a link that others share; what a camera does not say is left to the margin."""
    assert longest_s(features.get) == pytest.approx(seconds + MARGIN_S)
