"""Speed, load and fuzzing as commands; ``python -m benchmarks`` prints one table. Not installed."""

from model.processors import configure_openmp

configure_openmp()
