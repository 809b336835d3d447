"""Synthesises the synthetic corpora with espeak-ng: speakers, sentences, phones and acoustics."""
