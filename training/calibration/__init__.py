"""What ``python -m training.calibrate`` is made of: what is gathered, what is fitted, what is reported."""
