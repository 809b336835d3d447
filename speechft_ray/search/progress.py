"""How far a search is, as one line."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.search.trials import Trial, TrialEvaluator, find_best


def progress_line(trials: Sequence[Trial], budget: int, evaluator: TrialEvaluator | None) -> str:
    """Returns ``trials 12/40, 4 running, 3 stopped early; best score 512.30 (trial 7)``."""
    counts = {
        state: sum(trial.state == state for trial in trials)
        for state in ("running", "pruned", "failed")
    }
    ended = len(trials) - counts["running"]
    parts = [f"trials {ended}/{budget}", f"{counts['running']} running"]
    parts += [f"{counts['pruned']} stopped early"] if counts["pruned"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    best = find_best(trials, evaluator) if evaluator else None
    if evaluator is None or best is None or best.result is None:
        return ", ".join(parts)
    objective, value = evaluator.search.objectives[0], best.result.values[0]
    return f"{', '.join(parts)}; best {objective} {value:.4g} (trial {best.number})"
