"""Makes the table of torchvision's networks: ``python -m feature_atlas_worker.table [FILE]``.  Minutes, 6 GB."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from pathlib import Path

from feature_atlas import networks
from feature_atlas_worker.inspect import torchvision_network

log = logging.getLogger(__name__)


def write(path: Path) -> None:
    """Writes layers and weights of every torchvision classification network; same torchvision, same bytes."""
    from torchvision import models

    table = {}
    for name in sorted(models.list_models(module=models)):
        table[name] = networks.pack(torchvision_network(name))
        log.info("%s: %d layers", name, len(table[name]["names"]))
    text = json.dumps(table, separators=(",", ":"), sort_keys=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(networks.__file__).with_name("networks.json.gz"))
