"""Calibrated checks of images and sentences."""
