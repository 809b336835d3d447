"""Merging as algebra on state dicts, one method per module.

``algebra.merge`` merges state dicts, ``resident.ResidentMerger`` does so repeatedly, and
``streaming.merge_files`` merges files; all three give the same bits.
"""
