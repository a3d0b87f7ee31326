"""The world in front of the simulated camera: parts, light, defects with known truth, and faults by script.

`scene` draws frame ``i`` of a product as a pure function of its seed; `products`, `surfaces` and `defects` say what is
on it; `dataset` writes labelled folders for the trainer; `faults` belongs to the camera itself.
"""
