"""Ranking of held-out targets, and what it says by groups."""
