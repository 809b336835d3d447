"""Floor 0: specs, records, fingerprints, the store, the registry, metrics, errors. pydantic and the
standard library only."""
