"""Comparisons of methods over data sets and seeds: what to run, running it, and its tables."""
