"""Replicas of the model server on a Ray cluster."""

from service.ray_app.deployment import build

__all__ = ["build"]
