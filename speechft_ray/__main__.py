"""``python -m speechft_ray`` is the ``speechft`` command."""

import sys

from speechft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
