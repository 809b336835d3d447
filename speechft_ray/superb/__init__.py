"""Floor 2: what a frozen encoder is worth on a SUPERB task. Tasks are data, measures are functions,
one probe learns all."""
