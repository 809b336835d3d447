"""Distributed search for speech encoders that stay general after fine-tuning (Speech-FT, arXiv
2502.12672)."""

__version__ = "0.4.0"
