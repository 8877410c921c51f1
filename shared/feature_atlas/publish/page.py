"""``index.html``: a plain page that reads without JavaScript, and the viewer inlined into it.

Everything from an atlas is escaped here and set as text there; the Content-Security-Policy allows the page's own
script by its hash and files of its own origin, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from feature_atlas import keys
from feature_atlas.publish.blocks import SIZES, STRIP
from feature_atlas.publish.scripts import embed

#: In this order they make up the page's one script.
SCRIPTS = (
    "dom.js", "data.js", "likeness.js", "numbers.js", "cells.js", "mosaic.js", "arrange.js", "search.js",
    "takeaway.js", "overview.js", "grid.js", "facts.js", "unit.js", "compare.js", "pins.js", "hands.js", "app.js",
)  # fmt: skip
#: Runs before the plain page is laid out.
_EARLY = 'document.documentElement.classList.add("scripted")'
STYLES = ("page.css", "viewer.css")
#: How every page begins, and what opens the data of one without files beside it: no other page has that.
EMBEDDED = '<script type="application/json" id="embedded">'
START = "<!doctype html>"


def asset(name: str) -> str:
    """A source file of the viewer."""
    return (files("feature_atlas") / "viewer" / name).read_text(encoding="utf-8")


def bundle() -> tuple[str, str]:
    """(style sheet, script) of the viewer."""
    parts = "\n".join(asset(name) for name in SCRIPTS)
    return "\n".join(asset(name) for name in STYLES), f'(function () {{\n"use strict";\n{parts}\n}})();\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(style: str, scripts: Sequence[str], *, images: str = "") -> str:
    """The Content-Security-Policy of a page with exactly these inline parts; ``images``: further hosts of pictures."""
    allowed = " ".join(_hash(script) for script in scripts)
    pictures = f"'self' data: {images}".strip()
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src {_hash(style)};"
        f" img-src {pictures}; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def html(
    title: str,
    facts: Mapping[str, str],
    layers: Sequence[Mapping[str, Any]],
    variant: str,
    *,
    embedded: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
    sizes: Sequence[int] = SIZES,
    images: str = "",
) -> bytes:
    """The whole page.

    Args:
        title: the model.
        facts: what the plain page says about the atlas, name -> value.
        layers: what ``atlas.js`` says of them; the plain page shows each one's strip of ``variant``.
        variant: see ``layers``.
        embedded: data scripts by name, for a page without files beside it.
        links: key -> URL for files that do not lie beside the page (presigned, or ``data:``).
        sizes: of the sheets that ``links`` lead to.
        images: hosts for the policy where ``links`` lead elsewhere.
    """
    style, program = bundle()
    data = ""
    if embedded is not None:
        inline = embed({"scripts": embedded, "links": links or {}, "sizes": list(sizes)})
        data = f"{EMBEDDED}{inline}</script>\n"
    told = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    page = _TEMPLATE.format(
        policy=escape(policy(style, [_EARLY, program], images=images), quote=True), title=escape(title), style=style,
        facts=told, rows="".join(_row(layer, variant, links or {}) for layer in layers),
        data=data, early=_EARLY, program=program,
        contact="" if embedded else f' <a href="{keys.CONTACT_SHEET}">Contact sheet</a>',
    )  # fmt: skip
    return page.encode()


def plain(
    overview: Mapping[str, Any],
    *,
    embedded: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
    sizes: Sequence[int] = SIZES,
    images: str = "",
) -> bytes:
    """The page of an atlas from what ``atlas.js`` says; for the other arguments see :func:`html`."""
    counts = overview["counts"]
    facts = {
        "pictures": f"{counts['done']:,} of {counts['planned']:,}",
        "layers": f"{len(overview['layers']):,}",
        "licence": overview["license"],
        "root": overview["root_sha256"][:16],
    }
    return html(
        overview["title"], facts, overview["layers"], overview["first"],
        embedded=embedded, links=links, sizes=sizes, images=images,
    )  # fmt: skip


def _row(layer: Mapping[str, Any], variant: str, links: Mapping[str, str]) -> str:
    name, group = str(layer["name"]), layer["variants"].get(variant, {"done": 0, "strip": ()})
    count, picture = len(group["strip"]), ""
    if count:
        key = keys.strip(variant, name)
        picture = (
            f'<img src="{escape(links.get(key, key))}" width="{count * STRIP}" height="{STRIP}" loading="lazy"'
            f' alt="{count} channels of {escape(name)}">'
        )
    note = f"{escape(layer['kind'])}, {group['done']:,} of {layer['total']:,} channels"
    # It scrolls, so that a keyboard must reach it
    strip = f'<div class="strip" role="group" aria-label="{escape(name)}" tabindex="0">{picture}</div>'
    return f'<section><h2>{escape(name)}</h2><p class="note">{note}</p>{strip}</section>\n'


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="dark light">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<script>{early}</script>
</head>
<body>
<main id="plain">
<header><h1>{title}</h1>
<dl class="facts">{facts}</dl>
<p class="note">Every picture was optimised to excite one channel.{contact}</p></header>
{rows}</main>
<div id="app" hidden></div>
{data}<script>{program}</script>
</body>
</html>
"""
