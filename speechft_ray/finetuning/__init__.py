"""Stable fine-tuning of an encoder (Speech-FT, arXiv 2502.12672, section 3.1).

Imports no evaluation task and no sweep.
"""
