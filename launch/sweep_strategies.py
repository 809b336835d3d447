"""Which strategy? Linear and TIES merges of several fine-tuned models across alpha.

Runs ``speechft run --space strategies`` with the options of the command line, for example
``python launch/sweep_strategies.py --address auto --storage /shared/runs``.
"""

import sys

from speechft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--space", "strategies", *sys.argv[1:]]))
