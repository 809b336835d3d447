"""Encoder families: one file each, found by the registry in ``base``. ``_s3prl`` is the only
importer of s3prl."""
