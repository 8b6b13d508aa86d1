"""Inputs that a service should survive, and what it must answer to them; ``python -m benchmarks.fuzz`` sends them."""
