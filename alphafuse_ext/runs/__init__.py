"""Run folders: what they hold, and how model and item table are made from it."""
