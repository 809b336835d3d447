"""Predicts what a sweep costs: audio to encode, updates, bytes and hours. Runs no job."""
