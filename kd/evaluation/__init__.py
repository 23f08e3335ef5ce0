"""Predictions come in; metrics.json, comparisons and their tables for a terminal come out."""
