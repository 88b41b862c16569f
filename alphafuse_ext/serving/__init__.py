"""Recommending by a trained run, changing its catalog, and exporting it."""
