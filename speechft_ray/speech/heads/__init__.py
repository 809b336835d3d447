"""Heads on top of an encoder, shared by fine-tuning and evaluation: one file per kind, and the
weighted sum of hidden states that feeds probes."""
