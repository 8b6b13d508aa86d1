"""Serving: the HTTP interface, the batching model server and the web page over one bundle."""
