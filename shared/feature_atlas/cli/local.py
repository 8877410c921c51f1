"""Commands that render on this machine: demo, render, layers."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from feature_atlas.cli import codes, hints, selection
from feature_atlas.cli.progress import duration, table
from feature_atlas.cli.work import Work

if TYPE_CHECKING:
    from feature_atlas.settings import Settings
    from feature_atlas_worker.execute import Executor

#: What the demo shows of the built-in network, (layers, channels): edges to textures, and every class.  The layers
#: behind a ReLU, because the mean of a linear convolution over space knows colours only.
_DEMO = (("relu*", "0:10"), ("classifier", ":"))
#: Small and quick: a minute on two cores.
_DEMO_RECIPE = {"size": 64, "steps": 96}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands of this module."""
    demo = commands.add_parser("demo", help="render the built-in network: no download, no services, a minute")
    demo.add_argument("url", metavar="DIR", nargs="?", default="./atlas-demo", help="where to (./atlas-demo)")
    selection.add_device(demo)
    demo.add_argument("--json", action="store_true", help="end with a summary as JSON")
    demo.set_defaults(run=run_demo, extra="render", no_publish=False)

    render = commands.add_parser(
        "render", help="make or extend an atlas here, in one process",
        description="Makes or extends the atlas at URL on this machine.  Interrupted, it goes on where it was."
        "  Without --model it renders what is still missing in an atlas that is there.",
    )  # fmt: skip
    render.add_argument("url", metavar="URL", help="a folder or s3://bucket/prefix")
    selection.add_model(render, required=False)
    selection.add_layers(render)
    selection.add_recipe(render)
    selection.add_device(render)
    render.add_argument("--no-publish", action="store_true", help="leave out sheets, indexes and the page")
    render.add_argument("--json", action="store_true", help="end with a summary as JSON")
    render.set_defaults(run=run_render, extra="render")

    layers = commands.add_parser("layers", help="what a network holds: layers, kinds, channels")
    selection.add_model(layers, required=True)
    selection.add_layers(layers, kinds="all")
    layers.add_argument("--json", action="store_true", help="print JSON")
    layers.set_defaults(run=run_layers, extra="render")


def run_layers(args: argparse.Namespace) -> int:
    """Prints what can be rendered of one or several networks."""
    from feature_atlas_producer.plan import atlas_names
    from feature_atlas_producer.select import select

    settings = selection.settings_of(args)
    listed = []
    for model in atlas_names(args.model):
        network = selection.network_of(model, settings)
        chosen = select(network, args.layers, args.channels, args.kinds.split(","))
        rows = [(layer.name, layer.kind, len(layer.numbers)) for layer in chosen]
        total = sum(row[2] for row in rows)
        listed.append({
            "model": model, "weights": list(network.weights), "channels": total,
            "layers": [dict(zip(("name", "kind", "channels"), row, strict=True)) for row in rows],
        })  # fmt: skip
        if not args.json:
            print(table(list(rows), ("layer", "kind", "channels")))
            print(f"{model}: {len(rows)} layers, {total} channels")
    if args.json:
        print(json.dumps(listed, indent=1))
    return codes.DONE


def run_demo(args: argparse.Namespace) -> int:
    """Renders the built-in network and says what to open."""
    from feature_atlas.plan import PlanFile
    from feature_atlas.presets import preset
    from feature_atlas_producer.select import select
    from feature_atlas_worker import inspect, models

    name = "builtin:demo"
    network, ref = inspect.network(name), models.reference(name)
    layers = [layer for which, channels in _DEMO for layer in select(network, which, channels, ("all",))]
    recipe = preset("regularised", _DEMO_RECIPE)
    file = PlanFile(model=ref.digest(), layers=tuple(layers), variants={"channel": recipe})
    return _render(args, selection.settings_of(args), [selection.Request(args.url, ref, file)])


def run_render(args: argparse.Namespace) -> int:
    """Plans, renders what is missing, publishes, and sums up."""
    settings = selection.settings_of(args)
    if not args.model:
        selection.check_nothing_chosen(args)
    return _render(args, settings, selection.requests(args, settings) if args.model else [])


def _render(args: argparse.Namespace, settings: Settings, wanted: list[selection.Request]) -> int:
    """Renders these requests, or what is missing in the atlas that is there."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.plan import Plan
    from feature_atlas_worker.execute import Executor

    with Executor(settings.device, settings.batch, settings=settings) as executor:
        for request in wanted:
            _check_renders(executor, request)
        works = [Work(selection.grow(each), Plan(each.ref, {each.file.digest(): each.file})) for each in wanted]
        works = works or [Work(atlas := Atlas.open(args.url), atlas.plan)]
        for work in works:
            work.render(executor, publish=not args.no_publish)
            if work.interrupted:
                break
    return _sum_up(works, as_json=args.json)


def _check_renders(executor: Executor, request: selection.Request) -> None:
    """Refuses a picture too small for a layer before anything is written.  Free where everything is there."""
    from feature_atlas import growth
    from feature_atlas.atlas import Atlas
    from feature_atlas.store import open_store

    store = open_store(request.url)
    if growth.check(store, request.ref, request.file) and not any(Atlas.open(store).missing()):
        return

    def read(key: str) -> bytes:
        return store.get(key) if request.weights is None else request.weights

    layers = [layer.name for layer in request.file.layers]
    executor.check(request.ref, layers, request.file.variants.values(), read)


def _sum_up(works: list[Work], *, as_json: bool) -> int:
    summaries = [{**work.summary(), **work.counts()} for work in works]
    interrupted = any(work.interrupted for work in works)
    if as_json:
        print(json.dumps({"atlases": summaries, "interrupted": interrupted}, indent=1))
    else:
        for work, summary in zip(works, summaries, strict=True):
            _tell(work, summary)
    for work in works:
        if work.damaged:
            _tell_damage(work)
    if interrupted:
        return codes.INTERRUPTED
    if any(work.damaged for work in works):
        return codes.INTEGRITY
    partial = any(summary["missing"] or summary["failed"] for summary in summaries)
    return codes.PARTIAL if partial else codes.DONE


def _tell_damage(work: Work) -> None:
    pictures = "1 picture is" if work.damaged == 1 else f"{work.damaged} pictures are"
    why = f" ({work.why_damaged})" if work.why_damaged else ""
    print(
        f"feature-atlas: {pictures} damaged and could not be made again{why};"
        f" to remove what is broken: {hints.command('verify --repair', work.atlas)}",
        file=sys.stderr,
    )


def _tell(work: Work, counts: dict[str, Any]) -> None:
    dead = f" ({counts['dead']} dead)" if counts["dead"] else ""
    new = f"{work.rendered} new in {duration(work.seconds)}"
    print(f"{counts['done']} of {counts['planned']} channels are done{dead}; {new}")
    if work.repaired:
        print(f"damaged, removed and made again: {work.repaired}")
    for sentence, count in work.errors.items():
        print(f"{count} failed: {sentence}")
    if counts["failed"]:
        print(f"to try {counts['failed']} failed ones again: {hints.command('retry', work.atlas)}, then render again")
    if work.interrupted or counts["missing"]:
        print(f"{counts['missing']} are missing; to go on: {hints.command('render', work.atlas, runs=True)}")
    if work.page:
        print(f"open {work.page}")
