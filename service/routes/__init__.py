"""HTTP endpoints and their responses."""
