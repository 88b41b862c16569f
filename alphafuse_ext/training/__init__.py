"""Training: fit, resume, extend, and the loop."""
