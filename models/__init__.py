"""The judge: bundles, sessions, verdicts and the training that makes them."""
