"""Replicas of the model server on a Ray cluster."""
