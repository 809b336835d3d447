"""Floor 1: merging as algebra on state dicts. One method per file; ``algebra.merge`` is the only
way in."""
