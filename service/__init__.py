"""Serving: the HTTP interface, the batching model server and the web page over one bundle."""

from model.processors import configure_openmp

configure_openmp()
