"""Caches the outputs of frozen encoders and front ends on disk, for fine-tuning and evaluation."""
