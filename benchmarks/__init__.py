"""Speed, load and fuzzing as commands; ``python -m benchmarks`` prints one table. Not installed."""
