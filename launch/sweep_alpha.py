"""Which alpha? Stable fine-tuning, then merges across alpha, each evaluated on the tasks of the
space.

A saved command line: ``speechft run --space search_spaces/alpha.yaml`` with whatever you add, for
example ``python launch/sweep_alpha.py --address auto --storage /shared/runs``.
"""

import sys
from pathlib import Path

from speechft_ray.cli import main

if __name__ == "__main__":
    space = Path(__file__).resolve().parent.parent / "search_spaces" / "alpha.yaml"
    sys.exit(main(["run", "--space", str(space), *sys.argv[1:]]))
