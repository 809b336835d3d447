"""Layer 1: audio, encoders, checkpoints, corpora and heads. Modules here may use torch, and do not
import anything of a sweep."""
