"""Floor 2: stable fine-tuning of an encoder (Speech-FT, arXiv 2502.12672, section 3.1). Knows no
task suite and no sweep."""
