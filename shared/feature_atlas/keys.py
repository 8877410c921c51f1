"""The object layout: the only place that spells a key, both ways.

Same tree in a folder and in a bucket.  No parameters, hashes or batch bounds in the key of a unit.
"""

from __future__ import annotations

import re

from feature_atlas.errors import RequestError
from feature_atlas.spec import MAX_CHANNELS, NAME_LENGTH, NAME_PATTERN, Unit

ATLAS = "atlas.json"
PLANS = "plans/"
WEIGHTS = "weights/"
IMAGES = "images/"
INITIAL = "initial/"
MANIFESTS = "manifests/"
DEAD = "dead/"
ERRORS = "errors/"
SHEETS = "sheets/"
LAYERS = "layers/"
PACKS = "packs/"
INDEX = "index.jsonl.gz"
METADATA = "metadata.jsonl"
CARD = "README.md"
CROISSANT = "croissant.json"
PAGE = "index.html"
ATLAS_JS = "atlas.js"
STATUS_JS = "run/status.js"
#: Tells a folder from another machine's folder of the same path.
PLACE = "run/place"
#: There while the atlas is paused: a broker may forget that.
PAUSED = "run/paused"
CONTACT_SHEET = "contact-sheet.png"
#: What publish last wrote: plans, layers, files and the root digest; what a reader without listings starts from.
PUBLISHED = "published.json"
#: Numbers of every unit of the network, for the page's searches across layers.
NETWORK_JS = "network.js"
#: What publish writes at the top, beside the folders: names that a place may already hold for another reason.
TOP = (CARD, PAGE, METADATA, CROISSANT, ATLAS_JS, NETWORK_JS, INDEX, CONTACT_SHEET, PUBLISHED)

_NAME = re.compile(NAME_PATTERN)
_HEX = re.compile(r"[0-9a-f]+")
_UNIT = re.compile(r"(images|manifests|dead|errors)/([^/]+)/([^/]+)/([0-9]{5})(?:-([1-9][0-9]?))?(\.png|\.json|)")
_SUFFIX = {"images": ".png", "manifests": ".json", "dead": "", "errors": ".json"}


def check_name(name: str, what: str = "layer") -> str:
    """Returns the name if it may be one segment of a key.

    Raises:
        RequestError: it is too long, holds anything but letters, digits, ``.``, ``_`` and ``-``, or has an empty part
            between dots.
    """
    if not is_name(name):
        raise RequestError(
            f"the {what} name {name[:200]!r} cannot be a key: at most {NAME_LENGTH} letters, digits, '_' and '-',"
            " in parts joined by single dots"
        )
    return name


def is_name(name: str) -> bool:
    """Whether the name may be one segment of a key."""
    return len(name) <= NAME_LENGTH and _NAME.fullmatch(name) is not None


def _stem(unit: Unit) -> str:
    if not 0 <= unit.channel < MAX_CHANNELS:
        raise RequestError(f"channel {unit.channel} has no key: channels run from 0 to {MAX_CHANNELS - 1}")
    return f"{group(unit.variant, unit.layer)}{unit.channel:05d}"


def _check_hex(digest: str, digits: int) -> str:
    if len(digest) != digits or not _HEX.fullmatch(digest):
        raise RequestError(f"{digest[:80]!r} is not a digest of {digits} hexadecimal digits")
    return digest


def group(variant: str, layer: str) -> str:
    """``<variant>/<layer>/``, the tail of every per-unit prefix."""
    return f"{check_name(variant, 'variant')}/{check_name(layer)}/"


def plan(digest: str) -> str:
    """One immutable request."""
    return f"{PLANS}{_check_hex(digest, 16)}.json"


def weights(sha256: str) -> str:
    """A local weights file, copied in."""
    return f"{WEIGHTS}{_check_hex(sha256, 64)}.safetensors"


def image(unit: Unit, n: int = 0) -> str:
    """The lossless master; ``n`` > 0 for the further diverse images of a job (written before it)."""
    return f"{IMAGES}{_stem(unit)}{f'-{n}' if n else ''}.png"


def initial(unit: Unit) -> str:
    """The picture before the first step, where the recipe keeps it."""
    return f"{INITIAL}{_stem(unit)}.png"


def manifest(unit: Unit) -> str:
    """The side-car record."""
    return f"{MANIFESTS}{_stem(unit)}.json"


def dead(unit: Unit) -> str:
    """The empty marker beside the PNG of a dead channel."""
    return f"{DEAD}{_stem(unit)}"


def error(unit: Unit) -> str:
    """The last failure of a job."""
    return f"{ERRORS}{_stem(unit)}.json"


def layer(name: str, suffix: str = "json") -> str:
    """All rows of a layer (``json``), or the same as a classic script (``js``)."""
    return f"{LAYERS}{check_name(name)}/layer.{suffix}"


def sheet(pixels: int, variant: str, layer_name: str, block: int) -> str:
    """One block of 16 x 16 cells of ``pixels`` each."""
    return f"{SHEETS}{pixels}/{group(variant, layer_name)}{block:03d}.webp"


def detail(name: str) -> str:
    """What the page needs of a layer only once a unit is opened, as a classic script."""
    return f"{LAYERS}{check_name(name)}/detail.js"


def selectivity(name: str) -> str:
    """Which channel answers most to each picture of a layer."""
    return f"{LAYERS}{check_name(name)}/selectivity.json"


def strip(variant: str, layer_name: str) -> str:
    """A sample of a layer's pictures side by side."""
    return f"{SHEETS}strip/{group(variant, layer_name)}strip.webp"


def pack(variant: str, layer_name: str, block: int) -> str:
    """The masters of one block of 256 channels in a tar."""
    return f"{PACKS}{group(variant, layer_name)}{block:03d}.tar"


def probe(name: str) -> str:
    """A small object by which a worker finds out whether it can write."""
    return f"run/probe-{check_name(name, 'worker')}"


def parse_unit(key: str) -> tuple[str, Unit, int] | None:
    """(kind, unit, n) of a per-unit key (kind: images, manifests, dead, errors), or None for any other key."""
    match = _UNIT.fullmatch(key)
    if match is None or _SUFFIX[match[1]] != match[6] or (match[5] and match[1] != "images"):
        return None
    if not is_name(match[2]) or not is_name(match[3]):
        return None
    return match[1], Unit(match[2], match[3], int(match[4])), int(match[5] or 0)
