"""The options that say what to render, where and how, shared by every command that plans."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feature_atlas.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    from feature_atlas.atlas import Atlas
    from feature_atlas.networks import Network
    from feature_atlas.plan import PlanFile
    from feature_atlas.settings import Settings
    from feature_atlas.spec import ModelRef


#: Pixels a side that the networks of the table take, but for networks.ONE_SIZE; no preset goes below.
USUAL = 128
#: A network with a smaller share of convolutions is hardly made of them.
_FEW = 0.05


@dataclass(frozen=True)
class Request:
    """One model's part of a command: what shall be at which URL."""

    url: str
    ref: ModelRef
    file: PlanFile
    #: A local weights file, as safetensors, that the atlas takes in.
    weights: bytes | None = None
    #: What to say of layers that nobody asked for, and many would.
    left_out: str = ""


def add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--model``, ``--weights`` and what belongs to them."""
    group = parser.add_argument_group("which network")
    group.add_argument(
        "--model", required=required, metavar="M",
        help="a torchvision network (resnet50), builtin:demo, python:MODULE:FACTORY or timm:NAME; several: a,b",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="W",
        help="a name (IMAGENET1K_V2), a .safetensors or .pth file, its http(s) or s3 URL, or random:SEED;"
        " by default the network's own",
    )  # fmt: skip
    group.add_argument("--mean", metavar="R,G,B", type=_numbers, help="normalisation of the input, where it is unknown")
    group.add_argument("--std", metavar="R,G,B", type=_numbers, help="as --mean")
    group.add_argument(
        "--allow-model", metavar="PREFIX", action="append", default=[],
        help="allow python:MODULE:FACTORY models of this module: its code is run (repeatable)",
    )  # fmt: skip


def add_layers(parser: argparse.ArgumentParser, *, kinds: str = "conv") -> None:
    """``--layers``, ``--channels`` and ``--kinds``."""
    group = parser.add_argument_group("which channels")
    group.add_argument("--layers", metavar="GLOB", default="*", help="names or globs: 'layer3.*', features.12 (all)")
    group.add_argument("--channels", metavar="C", default=":", help="numbers and ranges: 0:64,100 or ::8 (all)")
    group.add_argument("--kinds", metavar="K", default=kinds, help=f"kinds of layers a glob matches, or all ({kinds})")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """``--variant``, ``--set`` and ``--keep-initial``."""
    group = parser.add_argument_group("how")
    group.add_argument(
        "--variant", metavar="NAME[=PRESET]", action="append",
        help="channel, negative, neuron, layer, diverse, regularised, draft, post, lucid, distill, raw;"
        " repeatable (channel)",
    )  # fmt: skip
    group.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], dest="changes",
        help="a field of the recipe: size=224, steps=256, jitter=8,4; repeatable",
    )  # fmt: skip
    group.add_argument("--keep-initial", action="store_true", help="also keep the picture before the first step")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--batch``."""
    group = parser.add_argument_group("on what")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    group.add_argument("--batch", metavar="N", type=int, help="channels side by side (what the memory holds)")


def settings_of(args: argparse.Namespace) -> Settings:
    """The environment's settings with this command's options over them.  Raises RequestError."""
    from feature_atlas.settings import Settings

    settings = Settings.load(device=getattr(args, "device", None), batch=getattr(args, "batch", None))
    own = tuple(getattr(args, "allow_model", ()))
    if own and str(Path.cwd()) not in sys.path:  # the console script does not look here, as `python -m` does
        sys.path.append(str(Path.cwd()))
    allowed = (*settings.allowed_models, *own)
    return settings.model_copy(update={"allowed_models": allowed})


def requests(args: argparse.Namespace, settings: Settings) -> list[Request]:
    """What the options ask for, one request per model; several models lie below a common root.

    Raises:
        RequestError: unknown model, weights, layers, channels, variants or fields, each in one sentence.
        WeightsError, StoreError: a download failed, or a bucket could not be read.
    """
    from feature_atlas.store import join
    from feature_atlas_producer.plan import atlas_names, parse_settings, request

    changes = parse_settings(args.changes)
    if args.keep_initial:
        changes["keep_initial"] = True
    names = atlas_names(args.model)
    found = []
    for model, name in names.items():
        network, ref, weights = resolve(model, args, settings)
        file = request(
            network, ref, layers=args.layers, channels=args.channels, kinds=args.kinds.split(","),
            variants=args.variant or ("channel",), changes=changes,
        )  # fmt: skip
        left_out = _left_out(model, network) if (args.layers, args.kinds) == ("*", "conv") else ""
        found.append(Request(args.url if len(names) == 1 else join(args.url, name), ref, file, weights, left_out))
    return found


def _left_out(model: str, network: Network) -> str:
    """A transformer has a convolution or two, and who asks for everything would get these only."""
    taken = sum(layer.kind == "conv" for layer in network.layers)
    if taken >= _FEW * len(network.layers):
        return ""
    return (
        f"{model}: {taken} of {len(network.layers)} layers are convolutions, and only these are taken; --kinds all"
        " takes every layer, --layers some"
    )


def check_nothing_chosen(args: argparse.Namespace) -> None:
    """Raises RequestError where a command without ``--model`` says what of it."""
    chosen = (args.weights, args.mean, args.std, args.variant, args.changes, args.keep_initial)
    if any(chosen) or (args.layers, args.channels, args.kinds) != ("*", ":", "conv"):
        raise RequestError("which network? say --model M as well; without a selection what is missing is rendered")


def network_of(model: str, settings: Settings) -> Network:
    """The layers of a model: from the table, or (with torch) from the network itself.  Raises RequestError."""
    from feature_atlas import networks

    known = None if ":" in model else networks.find(model)
    if known is not None:
        return known
    try:
        from feature_atlas_worker import inspect
    except ModuleNotFoundError:
        if ":" in model:
            raise
        raise networks.unknown(model) from None
    return inspect.network(model, allowed=settings.allowed_models)


def resolve(model: str, args: argparse.Namespace, settings: Settings) -> tuple[Network, ModelRef, bytes | None]:
    """(layers, reference, bytes of a weights file or None) of one model; torch is needed only off the table."""
    network = network_of(model, settings)
    published = args.weights in (None, "DEFAULT", *network.weights) or str(args.weights).startswith("random:")
    if network.weights and published and not (args.mean or args.std):
        return network, network.reference(args.weights), None
    from feature_atlas_worker.resolve import resolve as resolve_files

    ref, weights = resolve_files(
        model, args.weights, allowed=settings.allowed_models, mean=args.mean or (), std=args.std or ()
    )
    return network, ref, weights


def check_fits(wanted: list[Request], settings: Settings) -> None:
    """Refuses pictures that do not pass their network, before anything is written.

    Most networks of the table take what is at least as large as the presets' pictures, and are not built for those.
    Where torch or torchvision is missing, the workers refuse job by job.

    Raises:
        RequestError: a picture is too small for a layer, a neuron is not on its map, or the place is not free.
    """
    from feature_atlas import growth, networks
    from feature_atlas.store import open_store

    for request in wanted:
        name, recipes = request.ref.name, request.file.variants.values()
        there = growth.check(open_store(request.url), request.ref, request.file)
        usual = all(
            min(recipe.network_size or recipe.size) >= USUAL and not recipe.coarse_steps and recipe.position is None
            for recipe in recipes
        )
        if there or (usual and ":" not in name and not name.startswith(networks.ONE_SIZE)):
            continue
        layers = [layer.name for layer in request.file.layers]
        try:
            from feature_atlas_worker import fit

            fit.check_named(request.ref, layers, recipes, settings.allowed_models)
        except (ModuleNotFoundError, MissingExtraError):
            continue


def grow(request: Request) -> Atlas:
    """The atlas with the request added; a weights file goes in first, so that no plan ever lacks its weights.

    Raises:
        PlanConflictError: the URL holds another model, or another recipe under a variant's name.
    """
    from feature_atlas import growth, keys
    from feature_atlas.atlas import Atlas
    from feature_atlas.store import open_store

    store = open_store(request.url)
    growth.check(store, request.ref, request.file)
    if request.left_out:
        print(request.left_out, file=sys.stderr)
    if request.weights is not None:
        key = keys.weights(request.ref.weights.removeprefix("sha256:"))
        if not any(info.size == len(request.weights) for info in store.list(key)):
            store.put(key, request.weights)
    return Atlas.grow(store, request.ref, request.file)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406") from None
