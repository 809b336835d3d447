"""Checkpoint formats: one file each, behind the one loader in ``load``."""
