"""Data sets, image caches, augmentation and targets."""
