"""Training runs: configuration, trainer, run folder, evaluation, recommender."""
