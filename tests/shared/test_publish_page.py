"""The page as a file: readable without scripts, nothing foreign, nothing injected."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from feature_atlas import keys
from feature_atlas.publish import page, publish, scripts
from feature_atlas.store import MemoryStore
from tests import synthetic

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u2028"


class Parsed(HTMLParser):
    """Tags with attributes, and the text of each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while tag in self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


@pytest.fixture(scope="module")
def html() -> str:
    store = MemoryStore()
    synthetic.write_atlas(store, (("conv1", 5), ("conv2", 9)), size=24)
    publish(store)
    return store.get(keys.PAGE).decode()


def test_the_plain_page_shows_every_layer_without_scripts(html: str) -> None:
    parsed = Parsed(html)
    assert parsed.texts["h2"] == ["conv1", "conv2"]
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["src"] for image in images] == [keys.strip("channel", "conv1"), keys.strip("channel", "conv2")]
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    assert any(attributes.get("href") == keys.CONTACT_SHEET for tag, attributes in parsed.tags if tag == "a")


def test_nothing_comes_from_elsewhere(html: str) -> None:
    program = page.bundle()[1]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert "type=module" not in html and "import(" not in program and "eval(" not in program
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "new Function", "srcdoc"):
        assert way not in program
    # fetch is not to be had on file://: the one use says so
    assert program.count("fetch(") == 1 and 'location.protocol === "file:"' in program


def test_the_policy_allows_exactly_the_inline_parts(html: str) -> None:
    parsed = Parsed(html)
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for kind in ("script", "style"):
        assert len(parsed.texts[kind]) == {"script": 2, "style": 1}[kind]
        for inline in parsed.texts[kind]:
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none';")


def test_hostile_words_stay_words() -> None:
    layer = {"name": EVIL, "kind": EVIL, "total": 1, "variants": {"channel": {"done": 1, "strip": [0]}}}
    data = {"atlas": {"title": EVIL}}
    links = {keys.CONTACT_SHEET: EVIL}
    html = page.html(EVIL, {EVIL: EVIL}, [{**layer, "name": "conv1"}], "channel", embedded=data, links=links).decode()
    parsed = Parsed(html)
    assert [tag for tag, _ in parsed.tags].count("script") == 3  # a word ahead, the data and the program
    assert not [tag for tag, attributes in parsed.tags if "onerror" in attributes]
    assert "".join(parsed.texts["h1"]) == EVIL


def test_data_scripts_survive_hostile_words() -> None:
    text = scripts.script("x", {"evil": EVIL}).decode()
    assert text.isascii() and "</" not in text and "&" not in text


def test_every_source_of_the_viewer_is_on_the_page() -> None:
    from importlib.resources import files

    names = {entry.name for entry in (files("feature_atlas") / "viewer").iterdir() if not entry.name.startswith("__")}
    assert names == {*page.SCRIPTS, *page.STYLES}
