"""Measured speed, as commands: ``python -m benchmarks`` prints one table. Not part of the installed package."""
