"""Pages to read: of a data set before training, and of a run after it."""
