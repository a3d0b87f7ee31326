"""A simulated GenTL producer in C, and what switches it."""
