"""Training loop, checkpoints, plots and distributed processes."""
