"""Checkpoints of encoders: one module a format, all read through ``load``."""
