"""Which merge? A search over alpha, lambda and strategy that proposes the next merge as soon as an
evaluation ends.

A saved command line: ``speechft run --space search_spaces/search_alpha_lambda.yaml`` with whatever
you add, for example ``python launch/search_merge.py --address auto --storage /shared/runs``.
"""

import sys
from pathlib import Path

from speechft_ray.cli import main

if __name__ == "__main__":
    space = Path(__file__).resolve().parent.parent / "search_spaces" / "search_alpha_lambda.yaml"
    sys.exit(main(["run", "--space", str(space), *sys.argv[1:]]))
