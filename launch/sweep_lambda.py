"""Merge or regularize? The L2-SP baseline across lambda beside the merges.

A saved command line: ``speechft run --space search_spaces/lambda.yaml`` with whatever you add, for
example ``python launch/sweep_lambda.py --address auto --storage /shared/runs``.
"""

import sys
from pathlib import Path

from speechft_ray.cli import main

if __name__ == "__main__":
    space = Path(__file__).resolve().parent.parent / "search_spaces" / "lambda.yaml"
    sys.exit(main(["run", "--space", str(space), *sys.argv[1:]]))
