"""Evaluation of a bundle: inference, counterfactuals, scores, tables, page."""
