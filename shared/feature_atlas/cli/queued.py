"""The queue's side of status and retry, where a broker is named."""

from __future__ import annotations

import argparse
import importlib.util
import time
from typing import TYPE_CHECKING, Any

from feature_atlas.cli.progress import duration, table
from feature_atlas.errors import BrokerError

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas


def broker_of(args: argparse.Namespace) -> str:
    """The broker that the command or the environment names; empty where none is, or its client is not installed."""
    from feature_atlas.settings import Settings

    if args.broker:
        return str(args.broker)
    return Settings.load().broker if importlib.util.find_spec("redis") is not None else ""


def look(args: argparse.Namespace, atlas: Atlas) -> dict[str, Any] | None:
    """What the queue knows of the atlas, as JSON; None where no broker is named.

    Raises:
        BrokerError: the one that the command names cannot be reached; the environment's is only reported.
    """
    broker = broker_of(args)
    if not broker:
        return None
    from feature_atlas.monitor import queue_status

    try:
        status = queue_status(broker, atlas.url)
    except BrokerError as error:
        if args.broker:
            raise
        return {"error": str(error)}
    groups = [
        {"variant": variant, "layer": layer, "queued": queued, "in_hand": in_hand}
        for (variant, layer), (queued, in_hand) in sorted(status.groups.items())
    ]
    return {**status.to_json(), "groups": groups}


def on_the_way(queue: dict[str, Any] | None) -> int:
    """How many jobs are queued or in hand."""
    return int(queue["queued"] + queue["in_hand"]) if queue and "queued" in queue else 0


def cost(found: dict[str, Any], price: float) -> dict[str, Any]:
    """What the atlas still costs, and what the workers that the queue knows of have cost in all; as JSON.

    Args:
        found: what ``status`` found, its queue included.
        price: of an hour of one worker, in whatever currency.
    """
    beats = (found["queue"] or {}).get("workers", ())
    alive = sum(beat["alive"] for beat in beats) or 1
    left = found["seconds_left"]
    hours = sum(max(0.0, beat["at"] - beat["started"]) for beat in beats) / 3600
    return {
        "price": price, "workers": alive, "left": None if left is None else round(left / 3600 * alive * price, 2),
        "hours": round(hours, 2), "spent": round(hours * price, 2),
    }  # fmt: skip


def show_cost(costs: dict[str, Any]) -> None:
    """Prints what :func:`cost` reckoned."""
    if costs["left"] is not None:
        print(f"about {costs['left']:.2f} to go, at {costs['price']:g} an hour for each of {costs['workers']} workers")
    if costs["hours"]:
        print(f"{costs['spent']:.2f} for the {costs['hours']:g} hours of the workers below, whatever they rendered")


def show(queue: dict[str, Any], missing: int) -> None:
    """Prints what :func:`look` found."""
    if "error" in queue:
        print(f"the queue cannot be seen: {queue['error']}")
        return
    flag = f" ({queue['flag']})" if queue["flag"] else ""
    print(f"{queue['queued']} queued, {queue['in_hand']} in hand{flag}")
    lost = missing - on_the_way(queue)
    if lost > 0 and not queue["flag"]:
        print(f"{lost} are neither: idle workers send them again, or: feature-atlas enqueue URL")
    if queue["workers"]:
        columns = ("worker", "device", "batch", "state", "layer", "done", "failed", "jobs/s", "heard of")
        rows: list[tuple[object, ...]] = [
            (beat["worker"], beat["device"], beat["batch"], beat["state"] if beat["alive"] else "gone", beat["layer"],
             beat["done"], beat["failed"], f"{beat['rate']:.2g}", f"{duration(max(0.0, time.time() - beat['at']))} ago")
            for beat in queue["workers"]
        ]  # fmt: skip
        print("\n" + table(rows, columns))
    for note in dict.fromkeys(beat["note"] for beat in queue["workers"] if beat["alive"] and beat["note"]):
        print(f"! {note}")
    if queue["malformed"]:
        print(f"! {queue['malformed']} messages could not be used and were put aside (HGETALL feature-atlas:malformed)")


def send_again(args: argparse.Namespace, atlas: Atlas) -> int | None:
    """Lets the queue try again what was given up and enqueues what is missing; None where no broker is named."""
    broker = broker_of(args)
    if not broker:
        return None
    from feature_atlas.broker import connect
    from feature_atlas.reconcile import forget
    from feature_atlas_producer.enqueue import enqueue

    client = connect(broker)
    try:
        forget(client, atlas.url)
    finally:
        client.close()
    return enqueue(atlas, broker).sent
