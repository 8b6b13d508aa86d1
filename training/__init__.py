"""Training: data sets, stages, evaluation; what comes out is a bundle that `service` serves."""
