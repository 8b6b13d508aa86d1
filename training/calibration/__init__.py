"""Parts of ``python -m training.calibrate``: features and records, the fits, metrics, the report."""
