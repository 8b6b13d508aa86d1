"""``python -m benchmarks gpu``: everything that a GPU decides, measured within a time budget."""
