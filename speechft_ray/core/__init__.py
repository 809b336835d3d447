"""Layer 0: specs, records, fingerprints, the store, the registry, metrics, errors.

Imports pydantic and the standard library only.
"""
