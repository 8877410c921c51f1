"""Commands for what people see of an atlas: publish, view, fetch, share, export."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from feature_atlas.cli.progress import Progress, duration
from feature_atlas.errors import RequestError

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas
    from feature_atlas.publish.selectivity import Judge


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands of this module."""
    publish = commands.add_parser("publish", help="bring sheets, indexes, packs and the page of an atlas up to date")
    publish.add_argument("url", metavar="URL", help="a folder or s3://bucket/prefix")
    publish.add_argument("--no-packs", action="store_true", help="leave out the tar files for bulk downloads")
    publish.add_argument(
        "--selectivity", action="store_true", help="show each picture to its layer: which answers most?"
    )
    publish.add_argument("--device", metavar="D", default="cpu", help="where the network of --selectivity runs (cpu)")
    publish.add_argument("--fresh", action="store_true", help="build everything anew")
    publish.add_argument("--watch", action="store_true", help="again and again, until a run elsewhere has done it all")
    publish.add_argument("--json", action="store_true", help="print JSON")
    publish.set_defaults(run=run_publish, extra="render")

    view = commands.add_parser("view", help="look at atlases in a browser, private buckets included")
    view.add_argument("url", metavar="URL", nargs="+", help="one, or several to compare: a folder, s3:// or https://")
    view.add_argument("--port", metavar="N", type=int, default=0, help="on 127.0.0.1 (a free one)")
    view.add_argument("--open", action="store_true", help="open the browser")
    view.set_defaults(run=run_view)

    fetch = commands.add_parser("fetch", help="copy an atlas, or part of it, into a folder; goes on where it was")
    fetch.add_argument("url", metavar="URL", help="a folder, s3://bucket/prefix or https://")
    fetch.add_argument("folder", metavar="DIR")
    _add_selection(fetch)
    fetch.add_argument("--channels", metavar="C", default=":", help="numbers and ranges: 0:64,100 or ::8 (all)")
    fetch.add_argument("--dry-run", action="store_true", help="only say how much it is")
    fetch.add_argument("--json", action="store_true", help="print JSON")
    fetch.set_defaults(run=run_fetch)

    share = commands.add_parser("share", help="one HTML file with signed links into a private bucket")
    share.add_argument("url", metavar="URL", help="s3://bucket/prefix")
    share.add_argument("file", metavar="FILE.html", type=Path)
    _add_selection(share)
    share.add_argument("--expires", metavar="T", default="7d", help="how long the links last: 90m, 12h (7d, the most)")
    _add_force(share)
    share.set_defaults(run=run_share)

    export = commands.add_parser("export", help="one HTML file with the pictures inside")
    export.add_argument("url", metavar="URL", help="a folder, s3://bucket/prefix or https://")
    export.add_argument("--single-file", metavar="FILE.html", type=Path, required=True, help="the file to write")
    _add_selection(export)
    export.add_argument("--size", type=int, choices=(16, 64, 128), default=64, help="pixels of a cell (64)")
    export.add_argument("--masters", action="store_true", help="with the lossless pictures too")
    _add_force(export)
    export.set_defaults(run=run_export)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", metavar="GLOB", default="*", help="names or globs: 'layer3.*',fc (all)")
    parser.add_argument("--variants", metavar="GLOB", default="*", help="names or globs (all)")


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace the file whatever it holds, not only such a page")


def run_publish(args: argparse.Namespace) -> int:
    """Publishes; exit code 3 where the atlas is not complete."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.publish import publish

    atlas = Atlas.open(args.url)
    judge = _judge(atlas, args.device) if args.selectivity else None
    if args.watch:
        _watch(atlas, packs=not args.no_packs)
        args.fresh = False
    with Progress("publish", len(atlas.plan)) as progress:
        told = publish(
            atlas, packs=not args.no_packs, fresh=args.fresh, judge=judge,
            progress=lambda done, total: progress.add(done - progress.done),
        )  # fmt: skip
    if args.json:
        print(json.dumps(vars(told), indent=1))
    else:
        rest = told.planned - told.done
        print(
            f"{told.done} pictures published in {duration(told.seconds)}" + (f", {rest} still missing" if rest else "")
        )
        print(f"root sha256:{told.root_sha256}")
        print(f"open {told.page}")
    return 3 if told.done < told.planned else 0


def _watch(atlas: Atlas, *, packs: bool) -> None:
    """Publishes again and again; Ctrl-C ends that, and the page is told so."""
    import time

    from feature_atlas.publish.follow import follow

    def pause(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    with Progress("rendered", len(atlas.plan)) as progress:
        follow(atlas, pause, packs=packs, on_publish=lambda told: progress.to(told.done + told.failed, told.planned))


def _judge(atlas: Atlas, device: str) -> Judge:
    from feature_atlas.settings import Settings
    from feature_atlas_worker.selectivity import judge_of

    return judge_of(atlas.file.model, atlas.store.get, device, tuple(Settings.load().allowed_models))


def run_view(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    import webbrowser
    from urllib.parse import quote

    from feature_atlas.atlas import Atlas
    from feature_atlas.serve import PageServer

    if not 0 <= args.port < 65536:
        raise RequestError(f"--port {args.port} is no port: 1 to 65535, or 0 for a free one")
    stores = [_viewable(Atlas.open(url)).store for url in args.url]
    try:
        server = PageServer(stores, args.port)
    except OSError as error:
        raise RequestError(f"port {args.port} cannot be used: {error.strerror}; --port 0 takes a free one") from None
    with server:
        for n, store in enumerate(stores):
            print(f"{store.url}\n  {server.url(n)}?from={quote(store.url, safe=':/')}", flush=True)
        if len(stores) > 1:
            print("beside each other: open a layer of the first and add ?b=../1/ to its address", flush=True)
        print("Ctrl-C ends", file=sys.stderr, flush=True)
        if args.open:
            webbrowser.open(f"{server.url()}?from={quote(stores[0].url, safe=':/')}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _viewable(atlas: Atlas) -> Atlas:
    """The atlas with a page; a folder without one is published on the way."""
    from feature_atlas import keys
    from feature_atlas.errors import ObjectNotFound
    from feature_atlas.publish import publish
    from feature_atlas.store import DirectoryStore

    try:
        atlas.store.get_range(keys.PAGE, 0, 1)
    except ObjectNotFound:
        if not isinstance(atlas.store, DirectoryStore):
            raise RequestError(f"{atlas.url} has no page yet: feature-atlas publish {atlas.url}") from None
        publish(atlas, packs=False)
    return atlas


def run_fetch(args: argparse.Namespace) -> int:
    """Copies; exit code 4 where something could not be had intact."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.fetch import fetch

    chosen = {"layers": args.layers, "channels": args.channels, "variants": args.variants}
    atlas = Atlas.open(args.url)
    if args.dry_run:
        told = fetch(atlas, args.folder, **chosen, dry_run=True)
    else:
        with _Bytes("fetch") as progress:
            told = fetch(atlas, args.folder, **chosen, progress=progress.at_bytes)
    if args.json:
        print(json.dumps({**vars(told), "folder": str(told.folder)}, indent=1))
        return 4 if told.problems else 0
    verb = "to fetch" if args.dry_run else "fetched"
    print(
        f"{told.pictures - told.present} pictures {verb} ({told.bytes / 1e6:.1f} MB in {told.requests} requests),"
        f" {told.present} were there"
    )
    for problem in told.problems:
        print(f"feature-atlas: {problem}", file=sys.stderr)
    if told.page:
        print(f"open {told.page}")
    return 4 if told.problems else 0


class _Bytes(Progress):
    """Progress in megabytes of a total that is known a little later."""

    def __init__(self, what: str) -> None:
        super().__init__(what, 0, unit="MB")

    def at_bytes(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes are there."""
        self.to(-(-done // 10**6), -(-total // 10**6))


def run_share(args: argparse.Namespace) -> int:
    """Writes the page and says how long its links last."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.publish.single import share
    from feature_atlas.views import seconds

    expires = seconds(args.expires)
    _check_replaceable(args.file, args.force)
    data = share(Atlas.open(args.url), layers=args.layers, variants=args.variants, expires=expires)
    _write(args.file, data)
    print(f"open {args.file} ({len(data) / 1e6:.1f} MB); its links last {duration(expires)}; whoever has it can look")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Writes the page."""
    from feature_atlas.atlas import Atlas
    from feature_atlas.publish.single import export

    _check_replaceable(args.single_file, args.force)
    with Progress("export", 0, unit="files") as progress:
        data = export(
            Atlas.open(args.url), layers=args.layers, variants=args.variants, size=args.size, masters=args.masters,
            progress=progress.to,
        )  # fmt: skip
    _write(args.single_file, data)
    print(f"open {args.single_file} ({len(data) / 1e6:.1f} MB)")
    return 0


def _check_replaceable(path: Path, force: bool) -> None:
    """Refuses a file that an earlier ``share`` or ``export`` did not write; before the pictures are read."""
    from feature_atlas.publish.single import is_ours

    if force or not path.is_file():
        return
    try:
        ours = is_ours(path)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    if not ours:
        raise RequestError(f"{path} is not a page of this program: choose another name, or replace it with --force")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from None
