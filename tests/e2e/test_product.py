"""The whole way on a real S3 gateway: publish, look at the bucket, take a part home, share a look, open it anywhere."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.cli import main
from feature_atlas.serve import PageServer
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, open_store
from tests import synthetic
from tests.servers import CephGateway
from tests.visitor import Visitor

pytestmark = pytest.mark.browser

LAYERS = (("conv1", 12), ("block.0.conv", 80))


TOY = ("--model", "python:tests.networks:toy", "--allow-model", "tests.networks", "--layers", "conv1,conv2")
TINY = ("--set", "size=16", "--set", "steps=3", "--batch", "4", "--channels", "0:4", "--keep-initial")


def test_what_was_just_rendered_is_seen_from_disk_and_over_http(
    tmp_path: Path, visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_ATLAS_ALLOWED_MODELS", "tests.networks")
    assert main(["render", str(tmp_path), *TOY, *TINY, "--variant", "channel", "--variant", "negative"]) == 0
    assert main(["publish", str(tmp_path), "--selectivity"]) == 0
    with PageServer([DirectoryStore(tmp_path)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for address in ((tmp_path / keys.PAGE).as_uri(), server.url()):
                visitor = visit(address)
                page = visitor.go()
                page.wait_for_selector(".strips .cell")
                assert [text.replace("\n", "") for text in visitor.texts(".layer h2")] == ["conv1", "conv2"]
                page = visitor.go("#/conv2/2")
                page.wait_for_function("() => document.querySelector('.master').naturalWidth === 16")
                page.wait_for_selector(".images button >> nth=1")  # the picture, and how it began
                assert "answers most" in page.locator(".numbers").inner_text()
                assert [text.split()[0] for text in visitor.texts(".variants figcaption")] == ["channel", "negative"]
                assert visitor.complaints == []
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def place(ceph: CephGateway, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An atlas on S3 that anybody may read: its s3:// and its http:// address."""
    for name, value in ceph.environ.items():
        monkeypatch.setenv(name, value)
    bucket = ceph.new_bucket()
    url = f"s3://{bucket}/an/atlas"
    dead, failed = Unit("channel", "conv1", 3), Unit("channel", "conv1", 4)
    synthetic.write_atlas(open_store(url), LAYERS, size=24, dead=[dead], failed=[failed])
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = {"Version": "2012-10-17", "Statement": [everybody]}
    ceph.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return url, f"{ceph.url}/{bucket}/an/atlas"


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_an_atlas_on_s3_is_published_seen_fetched_and_shared(
    place: tuple[str, str], tmp_path: Path, visit: Callable[..., Visitor], capsys: pytest.CaptureFixture[str]
) -> None:
    url, public = place
    copy, look = tmp_path / "copy", tmp_path / "look.html"
    assert main(["publish", url, "--json"]) == 3  # one channel failed
    root = told(capsys)["root_sha256"]
    store = open_store(url)
    names = sorted(info.key for info in store.list(keys.IMAGES))
    lines = "".join(f"{hashlib.sha256(store.get(name)).hexdigest()}  {name}\n" for name in names)
    assert root == hashlib.sha256(lines.encode()).hexdigest()

    # The page lies in the bucket and needs nobody to serve it
    visitor = visit(f"{public}/{keys.PAGE}")
    page = visitor.go("#/block.0.conv")
    page.wait_for_selector(".grid .cell")
    assert (
        page.evaluate("""async () => {
      const url = /url\\("(.*)"\\)/.exec(document.querySelector(".grid .cell").style.backgroundImage)[1];
      const image = new Image(); image.src = url; await image.decode(); return image.naturalWidth;
    }""")
        == 16 * 128  # 80 channels are shown large
    )
    assert visitor.complaints == []

    # A part of it is an atlas and a dataset
    part = ["fetch", url, str(copy), "--layers", "block.*", "--channels", "0:64", "--json"]
    assert main([*part, "--dry-run"]) == 0
    planned = told(capsys)
    assert (planned["pictures"], planned["requests"]) == (64, 1) and not copy.exists()
    assert main(part) == 0
    assert told(capsys)["bytes"] == planned["bytes"]
    picture = copy / keys.image(Unit("channel", "block.0.conv", 7))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    assert main(part) == 0
    assert told(capsys)["present"] == 63 and picture.read_bytes() == whole
    assert len((copy / keys.METADATA).read_text().splitlines()) == 64
    datasets = pytest.importorskip("datasets", reason="datasets is in the test extra")
    loaded = datasets.load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 64 and loaded[7]["image"].size == (24, 24)

    # A look for somebody without keys
    assert main(["share", url, str(look), "--expires", "8d"]) == 2
    assert "7 days" in capsys.readouterr().err and not look.exists()
    assert main(["share", url, str(look), "--layers", "conv1", "--expires", "1h"]) == 0
    visitor = visit(look.as_uri())
    page = visitor.go("#/conv1/5")
    page.wait_for_function("() => document.querySelector('.master').naturalWidth === 24")
    assert visitor.complaints == []


def test_an_atlas_is_the_same_from_wherever_it_is_opened(place: tuple[str, str], tmp_path: Path) -> None:
    url, public = place
    assert main(["publish", url]) == 3
    with_keys, without = Atlas.open(url), Atlas.open(public)
    with_keys.fetch(tmp_path / "copy")
    folder = Atlas.open(tmp_path / "copy")
    for atlas in (with_keys, without, folder):
        assert atlas.dead() == {Unit("channel", "conv1", 3)}
        assert atlas["0.conv:17"].image.size == (24, 24)  # type: ignore[union-attr]
        assert [str(unit) for unit in atlas["conv1"][2:6]] == [f"conv1:{channel}" for channel in range(2, 6)]  # type: ignore[union-attr,index]
        assert not list(atlas.verify())
    rows = with_keys.rows()
    assert without.rows() == rows and len(rows) == 91
    assert [row["sha256"] for row in folder.rows()] == [row["sha256"] for row in rows]
