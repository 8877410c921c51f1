"""Commands of the queue: enqueue, worker, up, cancel, pause, resume."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_atlas.cli import codes, hints, selection
from feature_atlas.cli.progress import Progress
from feature_atlas.errors import RequestError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from feature_atlas.atlas import Atlas
    from feature_atlas.settings import Settings
    from feature_atlas.store import Store


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands of this module."""
    enqueue = commands.add_parser(
        "enqueue", help="hand an atlas to the queue: whatever is neither done nor on its way",
        description="Plans the atlas at URL and sends every job that is neither done nor on its way.  Safe to repeat at"
        " any time.  Without --model it sends what is still missing in an atlas that is there.",
    )  # fmt: skip
    enqueue.add_argument("url", metavar="URL", help="a folder that all workers share, or s3://bucket/prefix")
    add_broker(enqueue)
    selection.add_model(enqueue, required=False)
    selection.add_layers(enqueue)
    selection.add_recipe(enqueue)
    plan = enqueue.add_argument_group("how much")
    plan.add_argument("--dry-run", action="store_true", help="send nothing: say how many jobs, hours and bytes it is")
    plan.add_argument("--price", metavar="P", type=float, help="with --dry-run: what an hour of one worker costs")
    plan.add_argument("--no-pilot", action="store_true", help="with --dry-run: render no sample on this machine")
    plan.add_argument("--device", metavar="D", help="with --dry-run: where the sample is rendered (auto)")
    enqueue.add_argument("--json", action="store_true", help="print JSON")
    enqueue.set_defaults(run=run_enqueue, extra="producer")

    worker = commands.add_parser("worker", help="render jobs of the queue until told to end; one process per device")
    add_broker(worker)
    worker.add_argument(
        "--store", metavar="URL", action="append", default=[],
        help="where atlases may be written: a folder, s3://bucket/ or '*'; repeatable (FEATURE_ATLAS_ALLOWED_STORES)",
    )  # fmt: skip
    worker.add_argument("--gpus", metavar="G", help="one process for each of these GPUs: all, or 0,2")
    worker.add_argument(
        "--allow-model", metavar="PREFIX", action="append", default=[],
        help="allow python:MODULE:FACTORY models of this module: its code is run (repeatable)",
    )  # fmt: skip
    selection.add_device(worker)
    worker.set_defaults(run=run_worker, extra="worker")

    up = commands.add_parser(
        "up", help="everything on this machine: a queue of its own, N workers, progress, publish",
        description="Makes or extends the atlas at URL with N worker processes on this machine.  Needs no services.",
    )  # fmt: skip
    up.add_argument("url", metavar="URL", help="a folder or s3://bucket/prefix")
    selection.add_model(up, required=False)
    selection.add_layers(up)
    selection.add_recipe(up)
    selection.add_device(up)
    up.add_argument("--workers", metavar="N", type=int, help="how many processes (one per GPU, else 2)")
    up.add_argument("--no-publish", action="store_true", help="leave out sheets, indexes and the page")
    up.add_argument("--json", action="store_true", help="end with a summary as JSON")
    up.set_defaults(run=run_up, extra="embedded")

    for name, text in (
        ("cancel", "take an atlas's jobs out of the queue; what is rendered stays"),
        ("pause", "leave an atlas's jobs in the queue until it is resumed"),
        ("resume", "go on with an atlas that was paused"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("url", metavar="URL")
        add_broker(command)
        command.set_defaults(run=run_steer, extra="producer")


def add_broker(parser: argparse.ArgumentParser) -> None:
    """``--broker``."""
    parser.add_argument("--broker", metavar="URL", help="the queue, e.g. redis://host:6379/0 (FEATURE_ATLAS_BROKER)")


def run_enqueue(args: argparse.Namespace) -> int:
    """Sends what is missing and says what was where."""
    from feature_atlas.place import check_shared

    settings = _settings(args)
    if not args.dry_run:
        if args.price is not None or args.no_pilot or args.device:
            raise RequestError("--price, --no-pilot and --device belong to --dry-run: say that as well")
        check_shared(args.url)
    wanted = selection.requests(args, settings) if args.model else []
    if not wanted:
        selection.check_nothing_chosen(args)
    if args.dry_run:
        from feature_atlas.cli.dry_run import dry_run

        return dry_run(args, wanted, settings)
    from feature_atlas.atlas import Atlas
    from feature_atlas.broker import connect
    from feature_atlas_producer.enqueue import enqueue

    connect(settings.broker).close()  # before anything is written
    selection.check_fits(wanted, settings)
    atlases = [selection.grow(request) for request in wanted] or [Atlas.open(args.url)]
    summaries = []
    for atlas in atlases:
        with Progress("enqueue", len(atlas.plan), unit="jobs") as progress:
            result = enqueue(atlas, settings.broker, told=_told(progress))
        summaries.append({"url": atlas.url, **result._asdict()})
        if not args.json:
            _tell(atlas, result._asdict())
    if args.json:
        print(json.dumps({"atlases": summaries}, indent=1))
    return codes.DONE


def _told(progress: Progress) -> Callable[[int], None]:
    return lambda sent: progress.add(sent - progress.done)


def _tell(atlas: Atlas, counts: dict[str, Any]) -> None:
    parts = [f"{counts[name]} {text}" for name, text in (
        ("done", "are done"), ("queued", "were queued"), ("in_hand", "are being rendered"), ("failed", "failed"),
    ) if counts[name]]  # fmt: skip
    print(f"{counts['sent']} of {counts['planned']} jobs sent" + (f"; {', '.join(parts)}" if parts else ""))
    if counts["failed"]:
        print(f"to try failed ones again: {hints.command('retry', atlas)}")
    if counts["sent"]:
        print(f"workers: {hints.command('worker --store', atlas, runs=True)}")
        print(f"how far: {hints.command('status', atlas)} --watch")


def run_worker(args: argparse.Namespace) -> int:
    """Supervises one worker process per device until told to end."""
    settings = _settings(args)
    allowed = (*settings.allowed_stores, *args.store)
    if not allowed:
        raise RequestError(
            "where may this worker write? say --store s3://bucket/ (or a folder, or '*' for anywhere),"
            " or set FEATURE_ATLAS_ALLOWED_STORES"
        )
    from feature_atlas.broker import connect
    from feature_atlas.place import check_shared
    from feature_atlas_worker import alive
    from feature_atlas_worker.supervise import Supervisor
    from feature_atlas_worker.visible import check_device, gpus

    for place in allowed:
        if place != "*":
            check_shared(place)
    _need("torch")
    alive.begin(settings.alive_file)
    connect(settings.broker).close()
    environ = worker_environ(settings, allowed)
    devices = gpus(args.gpus) if args.gpus else []
    if not devices:
        check_device(settings.device)
    pid = os.getpid()  # two supervisors on one machine have workers of different names
    environs = {
        f"gpu{gpu}-{pid}": {**environ, "CUDA_VISIBLE_DEVICES": gpu, "FEATURE_ATLAS_DEVICE": "cuda"} for gpu in devices
    }
    with contextlib.ExitStack() as stack:
        if settings.metrics:  # one folder for all, which outlives each of them
            folder = tempfile.TemporaryDirectory(prefix="feature-atlas-", ignore_cleanup_errors=True)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(folder)
        supervisor = stack.enter_context(Supervisor(environs or {f"w-{pid}": environ}, grace=settings.grace))
        return supervisor.run()


def run_up(args: argparse.Namespace) -> int:
    """Broker, workers, progress and publish on this machine."""
    settings = _settings(args, broker=False)
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers}: at least 1")
    wanted = selection.requests(args, settings) if args.model else []
    if not wanted:
        selection.check_nothing_chosen(args)
    _need("torch")
    from feature_atlas.atlas import Atlas
    from feature_atlas.cli.up import Up, gpus_of

    gpus = gpus_of(settings.device)  # before anything is written
    selection.check_fits(wanted, settings)
    atlases = [selection.grow(request) for request in wanted] or [Atlas.open(args.url)]
    return Up(atlases, settings, gpus, workers=args.workers, publish=not args.no_publish, as_json=args.json).run()


def run_steer(args: argparse.Namespace) -> int:
    """cancel, pause and resume."""
    from feature_atlas import place, steer
    from feature_atlas.broker import connect, explain, trouble
    from feature_atlas.store import open_store

    settings, store = _settings(args), open_store(args.url)
    url = store.url
    client = connect(settings.broker)
    try:
        if args.command == "cancel":
            dropped = steer.cancel(client, url, known=_was_enqueued(store))
            place.withdraw(store)
            again = f"{hints.program()} enqueue {shlex.quote(url)}"
            print(f"{dropped} jobs taken out of the queue; to go on one day: {again}")
        elif args.command == "pause":
            steer.pause(client, url, known=_was_enqueued(store))
            _note_pause(store)
            again = f"{hints.program()} resume {shlex.quote(url)}"
            print(f"paused; batches in hand are finished.  To go on: {again}")
        else:
            # First here: the broker may have forgotten the pause, and would be told of it again.
            if not place.release(store) or steer.flag(client, url) is not None:
                steer.resume(client, url)
            print("resumed")
    except trouble() as error:
        raise explain(error, settings.broker) from error
    finally:
        client.close()
    return codes.DONE


def _was_enqueued(store: Store) -> bool:
    """Whether the atlas says so itself; the broker may have forgotten it, or the atlas be none."""
    from feature_atlas import place

    try:
        return place.is_enqueued(store)
    except StoreError:
        return False


def _note_pause(store: Store) -> None:
    from feature_atlas import place

    try:
        place.hold(store)
    except StoreError as error:
        print(f"the pause could not be noted in the atlas ({error}): it ends with the broker's memory", file=sys.stderr)


def _settings(args: argparse.Namespace, *, broker: bool = True) -> Settings:
    settings = selection.settings_of(args)
    if not broker:
        return settings
    from feature_atlas.broker import for_redis

    url = args.broker or settings.broker
    if not getattr(args, "dry_run", False):
        for_redis(url)
    return settings.model_copy(update={"broker": url})


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(name=package)


def worker_environ(settings: Settings, allowed: tuple[str, ...]) -> dict[str, str]:
    """What a worker process is told, over what it inherits."""
    environ = {
        "FEATURE_ATLAS_BROKER": settings.broker,
        "FEATURE_ATLAS_ALLOWED_STORES": ",".join(allowed),
        "FEATURE_ATLAS_ALLOWED_MODELS": ",".join(settings.allowed_models),
        "FEATURE_ATLAS_DEVICE": settings.device,
    }
    if settings.batch is not None:
        environ["FEATURE_ATLAS_BATCH"] = str(settings.batch)
    if settings.allowed_models:  # their modules may lie where the command was given
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    return environ
