"""Metric functions of hypotheses and references; each result is in the metric table's unit."""
