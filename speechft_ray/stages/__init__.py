"""Layer 4: how each stage of a sweep is performed, from a job to a published unit of the store."""
