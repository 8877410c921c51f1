"""``python -m feature_atlas_worker.kernels``: compiles the kernels anew."""

from __future__ import annotations

import sys

from feature_atlas_worker.kernels.build import build

try:
    for path in build():
        sys.stdout.write(f"{path}\n")
except RuntimeError as error:
    sys.exit(f"feature_atlas_worker.kernels: {error}")
