"""Inputs that a service must survive, and the rules for its answers, for ``benchmarks.fuzz``."""
