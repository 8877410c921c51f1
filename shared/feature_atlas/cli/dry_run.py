"""``enqueue --dry-run``: how much it would be."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

from feature_atlas.atlas import Atlas
from feature_atlas.cli import codes
from feature_atlas.cli.progress import duration
from feature_atlas.plan import Plan
from feature_atlas.store import open_store

if TYPE_CHECKING:
    from feature_atlas.cli.selection import Request
    from feature_atlas.settings import Settings
    from feature_atlas.spec import Unit

#: Bytes of an optimised picture per pixel, and of its records, where none is rendered to find out.
_PER_PIXEL, _RECORDS = 2.2, 7000


def dry_run(args: argparse.Namespace, wanted: list[Request], settings: Settings) -> int:
    """Prints jobs, hours, bytes and cost, with their uncertainty; writes and sends nothing."""
    found = [_one(args, request, settings) for request in wanted] or [_present(args.url)]
    if args.json:
        print(json.dumps({"atlases": found}, indent=1))
        return codes.DONE
    for row in found:
        print(f"{row['url']}: {row['jobs']} jobs ({row['done']} of {row['planned']} are done)")
        size = row["bytes"] / 1e9
        if "seconds" not in row:
            print(f"  about {size:.2g} GB; hours are measured where torch is installed, by a small sample")
            continue
        hours, error = row["seconds"] / 3600, row["seconds_error"] / 3600
        print(f"  {size:.2g} ± {row['bytes_error'] / 1e9:.1g} GB")
        print(
            f"  {duration(row['seconds'])} ± {duration(row['seconds_error'])} of one worker like this"
            f" ({row['device']}, batch {row['batch']}; {row['sampled']} pictures tried)"
        )
        if args.price is not None:
            print(f"  {hours * args.price:.2f} ± {error * args.price:.2f} at {args.price:g} an hour")
    return codes.DONE


def _one(args: argparse.Namespace, request: Request, settings: Settings) -> dict[str, Any]:
    from feature_atlas import growth

    store = open_store(request.url)
    growth.check(store, request.ref, request.file)
    if request.left_out:
        print(request.left_out, file=sys.stderr)
    plan = Plan(request.ref, {request.file.digest(): request.file})
    there = Atlas.open(store).done() if growth.read_file(store) is not None else set()
    units = [unit for unit in plan.units() if unit not in there]
    row = _row(store.url, plan, units)
    if units and not args.no_pilot and importlib.util.find_spec("torch") is not None:
        from feature_atlas.cli.pilot import Pilot
        from feature_atlas_producer.estimate import estimate

        pilot = Pilot(request, settings)
        try:
            batch = pilot.batch(plan.job(units[0]))
            guess = estimate(plan, units, pilot.measure, batch=batch)
        finally:
            pilot.close()
        row.update(
            seconds=guess.seconds.total, seconds_error=guess.seconds.error, bytes=guess.bytes.total,
            bytes_error=guess.bytes.error, sampled=guess.sampled, device=pilot.device, batch=batch,
        )  # fmt: skip
    if args.price is not None and "seconds" in row:
        row.update(cost=row["seconds"] / 3600 * args.price, cost_error=row["seconds_error"] / 3600 * args.price)
    return row


def _present(url: str) -> dict[str, Any]:
    atlas = Atlas.open(url)
    return _row(atlas.url, atlas.plan, list(atlas.missing()))


def _row(url: str, plan: Plan, units: list[Unit]) -> dict[str, Any]:
    size = 0.0
    for unit in units:
        recipe = plan.variants[unit.variant]
        size += recipe.images * recipe.size[0] * recipe.size[1] * _PER_PIXEL + _RECORDS
    return {"url": url, "planned": len(plan), "done": len(plan) - len(units), "jobs": len(units), "bytes": size}
