"""The object layout: the only place that spells a key, both ways.

Same tree in a folder and in a bucket.  No parameters, hashes or batch bounds in the key of a unit.
"""

from __future__ import annotations

import re

from feature_atlas.errors import RequestError
from feature_atlas.spec import NAME_PATTERN, Unit

ATLAS = "atlas.json"
PLANS = "plans/"
WEIGHTS = "weights/"
IMAGES = "images/"
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
CONTACT_SHEET = "contact-sheet.png"

_NAME = re.compile(NAME_PATTERN)
_UNIT = re.compile(r"^(images|manifests|dead|errors)/([^/]+)/([^/]+)/(\d{5})(?:-(\d+))?(\.png|\.json|)$")
_SUFFIX = {"images": ".png", "manifests": ".json", "dead": "", "errors": ".json"}


def check_name(name: str, what: str = "layer") -> str:
    """Returns the name if it may be one segment of a key.

    Raises:
        RequestError: it holds anything but letters, digits, ``.``, ``_`` and ``-``, or starts with a dot.
    """
    if not _NAME.match(name) or len(name) > 200 or ".." in name:
        raise RequestError(f"the {what} name {name!r} cannot be a key: letters, digits, '.', '_' and '-' only")
    return name


def group(variant: str, layer: str) -> str:
    """``<variant>/<layer>/``, the tail of every per-unit prefix."""
    return f"{check_name(variant, 'variant')}/{check_name(layer)}/"


def plan(digest: str) -> str:
    """One immutable request."""
    return f"{PLANS}{digest}.json"


def weights(sha256: str) -> str:
    """A local weights file, copied in."""
    return f"{WEIGHTS}{sha256}.safetensors"


def image(unit: Unit, n: int = 0) -> str:
    """The lossless master; ``n`` > 0 for the further diverse images of a job (written before it)."""
    return f"{IMAGES}{group(unit.variant, unit.layer)}{unit.channel:05d}{f'-{n}' if n else ''}.png"


def initial(unit: Unit) -> str:
    """The picture before the first step, where the recipe keeps it."""
    return f"initial/{group(unit.variant, unit.layer)}{unit.channel:05d}.png"


def manifest(unit: Unit) -> str:
    """The side-car record."""
    return f"{MANIFESTS}{group(unit.variant, unit.layer)}{unit.channel:05d}.json"


def dead(unit: Unit) -> str:
    """The empty marker beside the PNG of a dead channel."""
    return f"{DEAD}{group(unit.variant, unit.layer)}{unit.channel:05d}"


def error(unit: Unit) -> str:
    """The last failure of a job."""
    return f"{ERRORS}{group(unit.variant, unit.layer)}{unit.channel:05d}.json"


def layer(name: str, suffix: str = "json") -> str:
    """All rows of a layer (``json``), or the same as a classic script (``js``)."""
    return f"{LAYERS}{check_name(name)}/layer.{suffix}"


def sheet(pixels: int, variant: str, layer_name: str, block: int) -> str:
    """One block of 16 x 16 cells of ``pixels`` each."""
    return f"{SHEETS}{pixels}/{group(variant, layer_name)}{block:03d}.webp"


def pack(variant: str, layer_name: str) -> str:
    """All masters of a layer in one tar."""
    return f"{PACKS}{check_name(variant, 'variant')}/{check_name(layer_name)}.tar"


def parse_unit(key: str) -> tuple[str, Unit, int] | None:
    """(kind, unit, n) of a per-unit key (kind: images, manifests, dead, errors), or None for any other key."""
    match = _UNIT.match(key)
    if match is None or _SUFFIX[match[1]] != match[6] or (match[5] and match[1] != "images"):
        return None
    if not _NAME.match(match[2]) or not _NAME.match(match[3]):
        return None
    return match[1], Unit(match[2], match[3], int(match[4])), int(match[5] or 0)
