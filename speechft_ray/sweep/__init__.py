"""Layer 2: plans and runs a sweep.

Imports core only; fine-tuning, merging and evaluation are passed in as functions.
"""
