"""Training: data sets, stages, evaluation; what comes out is a bundle that `service` serves."""

from model.processors import configure_openmp

configure_openmp()
