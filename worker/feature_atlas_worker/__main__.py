"""``python -m feature_atlas_worker [NAME]``: one worker, as a supervisor starts it."""

import os
import sys

# Read when Celery is imported: SIGTERM gives unfinished jobs back within the grace period.
os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")

if __name__ == "__main__":
    from feature_atlas_worker.app import main

    main(*sys.argv[1:2])
