"""Storages that are no folder: buckets of object stores, read through a folder of each node."""
