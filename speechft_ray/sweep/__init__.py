"""Floor 2: plan, run and report a sweep. Imports core only; tuning, merging and scoring are handed in as functions."""
