"""Which strategy? Linear and TIES merges of several fine-tuned models across alpha.

A saved command line: ``speechft run --space search_spaces/strategies.yaml`` with whatever you add,
for example ``python launch/sweep_strategies.py --address auto --storage /shared/runs``.
"""

import sys
from pathlib import Path

from speechft_ray.cli import main

if __name__ == "__main__":
    space = Path(__file__).resolve().parent.parent / "search_spaces" / "strategies.yaml"
    sys.exit(main(["run", "--space", str(space), *sys.argv[1:]]))
