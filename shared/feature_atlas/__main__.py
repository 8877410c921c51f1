"""``python -m feature_atlas`` is the command ``feature-atlas``."""

import sys

from feature_atlas.cli import main

if __name__ == "__main__":
    sys.exit(main())
