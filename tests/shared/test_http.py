"""Atlases over https: read only, without listings, from any static web server."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.errors import AtlasError, IntegrityError, ObjectNotFound, RequestError, StoreError
from feature_atlas.http import HttpStore
from feature_atlas.publish import publish
from feature_atlas.publish.records import Row
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, open_store
from tests import synthetic


class Quiet(SimpleHTTPRequestHandler):
    """A plain static server: no ranges, no listings that mean anything."""

    def log_message(self, *args: object) -> None:
        pass


class Moody(Quiet):
    """Fails every first request for a file."""

    seen: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        if self.path not in self.seen:
            self.seen.add(self.path)
            self.send_error(503)
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http") / "an atlas" / "here"
    dead = [Unit("channel", "conv1", 1)]
    failed = [Unit("channel", "conv2", 3)]
    synthetic.write_atlas(
        DirectoryStore(folder),
        (("conv1", 5), ("conv2", 9)),
        variants=["channel", "diverse"],
        size=24,
        dead=dead,
        failed=failed,
    )
    publish(folder)
    return folder


def served(folder: Path, handler: type[Quiet]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder.parents[1])))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/an%20atlas/here"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    yield from served(folder, Quiet)


def test_reads_what_a_folder_reads(folder: Path, url: str) -> None:
    local, remote = Atlas.open(folder), Atlas.open(url)
    assert remote.plan.digest() == local.plan.digest()
    for what in ("done", "dead", "failed"):
        assert getattr(remote, what)() == getattr(local, what)()
    assert remote.done("diverse", "conv1") == local.done("diverse", "conv1")
    assert remote.status() == local.status()
    assert remote.rows() == local.rows()
    unit = Unit("channel", "conv2", 4)
    assert remote.image(unit).tobytes() == local.image(unit).tobytes()
    assert remote.manifest(unit) == local.manifest(unit)
    assert list(remote.missing()) == []


@pytest.mark.parametrize("end", ["/", "/index.html", "/atlas.json"])
def test_the_address_of_the_page_is_the_address_of_the_atlas(url: str, end: str) -> None:
    assert Atlas.open(url + end).url == url


def test_ranges_work_even_where_the_server_knows_none(folder: Path, url: str) -> None:
    store = open_store(url)
    data = (folder / keys.PAGE).read_bytes()
    assert store.get_range(keys.PAGE, 10, 20) == data[10:30]
    assert store.get_range(keys.PAGE, len(data) - 5, 100) == data[-5:]


def test_a_moment_of_trouble_is_waited_out(folder: Path) -> None:
    Moody.seen.clear()
    for url in served(folder, Moody):
        assert len(Atlas.open(url).done()) == 27


def test_it_can_only_be_read(url: str) -> None:
    store = open_store(url)
    with pytest.raises(StoreError, match="can only be read"):
        store.put("x", b"")
    with pytest.raises(StoreError, match="can only be read"):
        store.delete("x")
    with pytest.raises(StoreError, match="can only be read"):
        publish(Atlas.open(url))


def test_what_is_not_there_is_said_so(url: str, folder: Path) -> None:
    with pytest.raises(ObjectNotFound):
        open_store(url).get("images/channel/conv1/09999.png")
    with pytest.raises(RequestError, match="there is no atlas"):
        Atlas.open(url + "/nowhere")
    with pytest.raises(StoreError, match=r"cannot read http://127\.0\.0\.1:9/.*: nobody answers there"):
        HttpStore("http://127.0.0.1:9/x").get("atlas.json")
    with pytest.raises(StoreError, match="there is no host of this name"):
        HttpStore("http://nowhere.invalid/x").get("atlas.json")


def test_nothing_too_large_is_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas.http.LARGEST", 100)
    with pytest.raises(StoreError, match="larger than 100 bytes"):
        open_store(url).get(keys.PAGE)


def test_a_layer_file_must_be_that_layers(folder: Path, url: str, tmp_path: Path) -> None:
    path = folder / keys.layer("conv2")
    good = path.read_bytes()
    try:
        path.write_bytes((folder / keys.layer("conv1")).read_bytes())
        with pytest.raises(IntegrityError, match="another layer"):
            Atlas.open(url).done()
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("url", ["https://me:secret@host/x", "https:///x", "https://"])
def test_a_wrong_address_gets_a_sentence_without_its_secret(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            told = told[int(step)] if isinstance(told, list) else told[step]
        told[int(last) if isinstance(told, list) else last] = value

    return change


COLUMN = {name: place for place, name in enumerate(Row._fields)}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (keys.layer("conv1"), _set("variants/channel/rows/0", [])),
        (keys.layer("conv1"), _set(f"variants/channel/rows/0/{COLUMN['channel']}", -1)),
        (keys.layer("conv1"), _set(f"variants/channel/rows/0/{COLUMN['bytes']}", [1, 2])),
        (keys.layer("conv1"), _set(f"variants/channel/rows/0/{COLUMN['bytes']}", [-1])),
        (keys.layer("conv1"), _set(f"variants/channel/rows/0/{COLUMN['sha256']}", [])),
        (keys.layer("conv1"), _set(f"variants/channel/rows/0/{COLUMN['offsets']}", [-5])),
        (keys.layer("conv1"), _set("variants/channel/blocks", {"../../x": {"inputs": "", "sheets": {}}})),
        (keys.layer("conv1"), _set("variants/channel/failed", "0:99999")),
        (keys.layer("conv1"), _set("variants", {"../x": {"planned": ":"}})),
        (keys.layer("conv1"), _set("layer", "../conv1")),
        (keys.layer("conv1"), _set("schema", 2)),
        (keys.PUBLISHED, _set("plans", ["../../etc/passwd"])),
        (keys.PUBLISHED, _set("layers/0/key", "layers/../x")),
        (keys.PUBLISHED, _set("layers/0/key", "conv1")),
        (keys.PUBLISHED, _set("root_sha256", "<script>")),
    ],
)
def test_hostile_records_get_a_sentence(
    folder: Path, url: str, tmp_path: Path, key: str, change: Callable[[dict[str, Any]], None]
) -> None:
    good = (folder / key).read_bytes()
    told = json.loads(good)
    change(told)
    try:
        (folder / key).write_text(json.dumps(told))
        try:
            atlas = Atlas.open(url)
            assert atlas.done() and atlas.failed() is not None and atlas.status() and atlas.rows()
            atlas.fetch(tmp_path / "copy")
        except AtlasError as error:
            assert str(error) and "Traceback" not in str(error)
    finally:
        (folder / key).write_bytes(good)
    assert not (tmp_path.parent / "x").exists()
