"""Which merge? Searches alpha, lambda and strategy instead of evaluating a list.

Runs ``speechft run --space search_alpha_lambda`` with the options of the command line, for example
``python launch/search_merge.py --address auto --storage /shared/runs``.
"""

import sys

from speechft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--space", "search_alpha_lambda", *sys.argv[1:]]))
