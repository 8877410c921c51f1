"""Commands that look at an atlas; they need neither torch nor a broker, but ask one that is named."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from feature_atlas.cli import codes, hints, queued
from feature_atlas.cli.progress import Progress, duration, per_second, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_atlas.atlas import Atlas

#: Seconds back over which the rate is taken, and the shortest pause after which nobody seems to be rendering.
_RECENT, _IDLE = 600.0, 30.0


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands of this module."""
    status = commands.add_parser("status", help="how far an atlas is: done, missing, dead and failed per layer")
    status.add_argument("url", metavar="URL")
    status.add_argument("--watch", action="store_true", help="look again every few seconds until all is done")
    status.add_argument("--every", metavar="S", type=float, default=5.0, help="seconds between two looks (5)")
    status.add_argument("--price", metavar="P", type=float, help="what an hour of one worker costs: also say the costs")
    status.add_argument("--broker", metavar="URL", help="also show the queue and its workers (FEATURE_ATLAS_BROKER)")
    status.add_argument("--json", action="store_true", help="print JSON, one line per look")
    status.set_defaults(run=run_status)

    verify = commands.add_parser("verify", help="compare every picture with its record; exit code 4 where one differs")
    verify.add_argument("url", metavar="URL")
    verify.add_argument("--repair", action="store_true", help="remove what is broken, so that it is rendered again")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=run_verify)

    retry = commands.add_parser("retry", help="forget failures, so that the next render tries again")
    retry.add_argument("url", metavar="URL")
    retry.add_argument("--dead", action="store_true", help="also remove dead units, to try them with other settings")
    retry.add_argument("--broker", metavar="URL", help="also send them to the queue again (FEATURE_ATLAS_BROKER)")
    retry.add_argument("--json", action="store_true", help="print JSON")
    retry.set_defaults(run=run_retry)


def run_status(args: argparse.Namespace) -> int:
    """Prints counts per group and in total; exit code 3 where something is missing or failed."""
    from feature_atlas.atlas import Atlas

    atlas = Atlas.open(args.url)
    while True:
        found = _status(atlas)
        found["queue"] = queued.look(args, atlas)
        if args.price is not None:
            found["cost"] = queued.cost(found, args.price)
        if args.json:
            print(json.dumps(found), flush=True)
        else:
            if args.watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            _print_status(found, atlas)
        if not args.watch or not (found["missing"] or queued.on_the_way(found["queue"])):
            return codes.PARTIAL if found["missing"] or found["failed"] else codes.DONE
        time.sleep(max(args.every, 0.1))
        atlas.reload()


def _status(atlas: Atlas) -> dict[str, Any]:
    groups = atlas.status()
    columns = ("planned", "done", "missing", "dead", "failed")
    totals = {name: sum(getattr(group, name) for group in groups) for name in columns}
    rate = _rate(atlas) if totals["missing"] else 0.0
    rows = [{"variant": g.variant, "layer": g.layer, **{name: getattr(g, name) for name in columns}} for g in groups]
    model = atlas.file.model
    return {
        "url": atlas.url, "model": model.name, "weights": model.weights, **totals, "rate": round(rate, 4),
        "seconds_left": round(totals["missing"] / rate) if rate else None, "groups": rows,
    }  # fmt: skip


def _rate(atlas: Atlas) -> float:
    """Pictures per second over the last minutes; 0 where nobody writes any more.  From a listing's times."""
    from feature_atlas import keys

    now = time.time()
    return pace([info.modified for info in atlas.store.list(keys.IMAGES) if now - info.modified < _RECENT], now)


def pace(times: Sequence[float], now: float) -> float:
    """How many come per second, of late, out of the seconds at which they came; 0 where no more seem to come.

    They come in batches: a pause is part of the pace while it is no longer than those before it, and the end of it
    all when it is three times as long, and half a minute.
    """
    times = sorted(times)
    if len(times) < 2:
        return 0.0
    longest, pause = max(later - earlier for earlier, later in itertools.pairwise(times)), max(0.0, now - times[-1])
    if pause > max(_IDLE, 3 * longest):
        return 0.0
    return (len(times) - 1) / max(times[-1] - times[0] + max(0.0, pause - longest), 1e-3)


def _print_status(found: dict[str, Any], atlas: Atlas) -> None:
    columns = ("variant", "layer", "planned", "done", "missing", "dead", "failed")
    print(table([tuple(group[name] for name in columns) for group in found["groups"]], columns))
    print(f"\n{found['model']} ({found['weights']}) at {found['url']}")
    share = 100 * found["done"] / found["planned"] if found["planned"] else 100.0
    print(
        f"{found['done']} of {found['planned']} channels are done ({share:.1f}%), {found['dead']} of them dead;"
        f" {found['missing']} missing, {found['failed']} failed"
    )
    if found["seconds_left"] is not None:
        print(f"{per_second(found['rate'])} channels/s, {duration(found['seconds_left'])} left")
    elif found["missing"] and found["queue"] is None:
        print(f"nobody draws here now; to go on: {hints.command('render', atlas, runs=True)}")
    if "cost" in found:
        queued.show_cost(found["cost"])
    if found["queue"] is not None:
        queued.show(found["queue"], found["missing"])
    if found["failed"]:
        print(f"to try failed ones again: {hints.command('retry', atlas)}, then render again")


def run_verify(args: argparse.Namespace) -> int:
    """Prints every problem; exit code 4 where a picture is broken, 3 once such pictures are removed."""
    from feature_atlas.atlas import Atlas

    atlas = Atlas.open(args.url)
    with Progress("verify", 0, unit="pictures") as progress:
        problems = list(atlas.verify(progress=progress.to))
    checked = progress.total
    broken = [problem for problem in problems if not problem.harmless]
    removed = atlas.repair(broken) if args.repair else []
    if args.json:
        rows = [
            {"unit": problem.unit, "kind": problem.kind, "harmless": problem.harmless, "sentence": problem.sentence}
            for problem in problems
        ]
        print(json.dumps({"url": atlas.url, "checked": checked, "removed": len(removed), "problems": rows}, indent=1))
    else:
        for problem in problems:
            print(problem.sentence)
        print(f"{checked} pictures checked: {len(broken)} problems, {len(problems) - len(broken)} harmless")
        if removed:
            print(f"{len(removed)} removed; to make them again: {hints.command('render', atlas, runs=True)}")
        elif broken:
            print(f"to remove them and make them again: {hints.command('verify --repair', atlas)}, then render")
    if not broken:
        return codes.DONE
    return codes.PARTIAL if len(removed) == len(broken) else codes.INTEGRITY


def run_retry(args: argparse.Namespace) -> int:
    """Removes failures on record, and dead units if asked."""
    from feature_atlas import keys
    from feature_atlas.atlas import Atlas

    atlas = Atlas.open(args.url)
    failed = atlas.failed()
    for unit in sorted(failed):
        atlas.store.delete(keys.error(unit))
    dead = sorted(atlas.dead() & atlas.done()) if args.dead else []
    for unit in dead:
        for key in (keys.image(unit), keys.dead(unit), keys.manifest(unit)):
            atlas.store.delete(key)
    sent = queued.send_again(args, atlas)
    if args.json:
        print(json.dumps({"url": atlas.url, "failed": len(failed), "dead": len(dead), "sent": sent}, indent=1))
        return codes.DONE
    also = f" and {len(dead)} dead ones" if args.dead else ""
    again = f"to render them: {hints.command('render', atlas, runs=True)}"
    how = again if sent is None else f"{sent} jobs sent to the queue"
    print(f"{len(failed)} failed units{also} are missing again; {how}")
    return codes.DONE
