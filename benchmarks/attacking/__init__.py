"""Attacks on the service, for ``benchmarks.attacks``: hostile bodies, and clients that send them."""
