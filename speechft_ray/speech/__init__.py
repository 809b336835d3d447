"""Floor 1: audio, encoders, checkpoints, corpora and heads. Everything here may use torch; nothing
here knows of a sweep."""
