"""Merge or regularize? The L2-SP baseline across lambda beside the merges.

Runs ``speechft run --space lambda`` with the options of the command line, for example
``python launch/sweep_lambda.py --address auto --storage /shared/runs``.
"""

import sys

from speechft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--space", "lambda", *sys.argv[1:]]))
