"""Cameras. `camera.py` holds what every driver promises; `process.py` keeps a driver in a process of its own."""
