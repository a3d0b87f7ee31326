"""Lineward watches a production line and says, for every part, pass, fail or review."""

import os
from importlib.metadata import version

# Read by OpenCV when it is first imported, wherever that happens; `images.MAX_PIXELS` says why.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "128000000")

# ONNX Runtime writes a session file and reports to its makers otherwise; read when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = version("lineward")
