"""Which alpha? Stable fine-tuning, then merges across alpha, each evaluated on SUPERB tasks.

Runs ``speechft run --space alpha`` with the options of the command line, for example
``python launch/sweep_alpha.py --address auto --storage /shared/runs``.
"""

import sys

from speechft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--space", "alpha", *sys.argv[1:]]))
