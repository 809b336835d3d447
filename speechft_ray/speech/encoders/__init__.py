"""Encoder families: one file each, registered in ``base``. Only ``_s3prl`` imports s3prl."""
