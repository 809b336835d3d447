"""Pure metric functions: decoded hypotheses and references in, one number in the metric table's
unit out."""
