"""What one step costs: every technique in turn, Lucent, and the network alone.

    python -m tests.bench                       the table on a CPU, as Markdown
    python -m tests.bench --layers resnet50:layer4.1.conv3 --rounds 3 --json raw.json
    python -m tests.bench --gpu                 the GPU tests, then the table and more on a GPU

Random weights; 128 px.  Rows alternate in rounds, medians are shown, the warm-up is not timed.  On a CPU, Lucent and
the rows without ``heap`` run in a process of their own, whose memory is as the system handles it.
Time to a picture as good as Lucent's: ``python -m tests.bench.quality``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from feature_atlas.errors import AtlasError
from tests.bench import gpu, subjects, waterfall
from tests.bench.rows import all_rows, opened
from tests.bench.shipped import untouched


def machine() -> dict[str, Any]:
    """Where and when the figures were taken."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"cpu": model, "cores": cores, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": date}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=list(subjects.LAYERS), metavar="NETWORK:LAYER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps per round at batch 1 (fewer at larger ones)")
    parser.add_argument("--batches", type=int, nargs="+", help="4 8 16, on a GPU 16 64 256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--json", type=Path, help="also write the raw numbers here")
    parser.add_argument("--gpu", action="store_true", help="the GPU tests, then the table and more on a GPU")
    parser.add_argument("--allow", nargs="*", default=[], metavar="MODULE", help="modules of python: networks")
    found = parser.parse_args(arguments)
    found.batches = found.batches or list(gpu.BATCHES if found.gpu else (4, 8, 16))
    if min(found.rounds, found.steps, found.threads, *found.batches) < 1:
        parser.error("--rounds, --steps, --batches and --threads must be at least 1")
    return found


def table(arguments: argparse.Namespace, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """The measured rows of every layer, under ``NETWORK:LAYER``."""
    models: dict[str, Any] = {}
    found = {}
    rows = all_rows(tuple(arguments.batches), device)
    with untouched() if device.type == "cpu" else nullcontext() as shipped:
        for subject in arguments.layers:
            name, _, layer = subject.rpartition(":")
            model = models.setdefault(name, None) or subjects.load(name, arguments.allow)
            models[name] = model
            with opened(model, layer, device, arguments.size) as bench:
                if shipped is not None:
                    shipped.open(name, layer, arguments.size, arguments.allow)
                records = waterfall.measure(bench, rows, arguments.rounds, arguments.steps, say, shipped)
            found[subject] = waterfall.compare(records)
    return found


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    options = parsed(arguments)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)  # not to fail after minutes
    torch.set_num_threads(options.threads)
    try:
        if options.gpu:
            return gpu.main(options)
        found = table(options, torch.device("cpu"))
    except AtlasError as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return error.exit_code
    about = machine()
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "layers": found}, indent=1) + "\n")
    print(waterfall.markdown(found))
    print("\n" + waterfall.LEGEND.format(unit="CPU time"))
    print("{cpu}, {cores} cores, {threads} thread(s), torch {torch}, {date}.".format(**about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
