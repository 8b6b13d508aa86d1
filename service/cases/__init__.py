"""Reference cases that users add."""
