"""Metrics, baselines and statistical tests."""
