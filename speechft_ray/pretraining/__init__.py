"""Pre-training of a small HuBERT by masked prediction (Hsu et al. 2021, arXiv 2106.07447)."""
