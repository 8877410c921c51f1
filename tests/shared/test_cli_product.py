"""The commands publish, view, fetch, share and export, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys
from feature_atlas.atlas import Atlas
from feature_atlas.cli import main
from feature_atlas.publish import publish
from feature_atlas.spec import Unit
from feature_atlas.store import DirectoryStore, open_store
from tests import synthetic
from tests.servers import MotoServer

LAYERS = (("conv1", 6), ("conv2", 20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    synthetic.write_atlas(DirectoryStore(tmp_path / "atlas"), LAYERS, size=24)
    return tmp_path / "atlas"


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_publish_tells_the_root_and_what_to_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(folder)]) == 0
    out = capsys.readouterr().out
    root = json.loads((folder / keys.PUBLISHED).read_text())["root_sha256"]
    assert f"root sha256:{root}" in out and f"open {folder}/index.html" in out


def test_publish_of_an_unfinished_atlas_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_atlas(DirectoryStore(tmp_path), LAYERS, size=24, missing=[Unit("channel", "conv1", 0)])
    assert main(["publish", str(tmp_path), "--no-packs", "--json"]) == 3
    assert said(capsys)["done"] == 25 and not (tmp_path / "packs").exists()


def test_fetch_counts_and_the_second_time_finds_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    target = str(folder.parent / "copy")
    arguments = ["fetch", str(folder), target, "--layers", "conv2", "--channels", "0:8", "--json"]
    assert main([*arguments, "--dry-run"]) == 0
    assert said(capsys)["requests"] == 1 and not Path(target).exists()
    assert main(arguments) == 0
    assert (told := said(capsys))["pictures"] == 8 and told["present"] == 0
    assert main(arguments) == 0
    assert said(capsys)["present"] == 8


def test_fetch_of_something_damaged_ends_with_4(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder, packs=False)
    picture = folder / keys.image(Unit("channel", "conv1", 2))
    picture.write_bytes(picture.read_bytes()[:-4])
    assert main(["fetch", str(folder), str(folder.parent / "copy")]) == 4
    assert "00002.png is not what the atlas's record says" in capsys.readouterr().err


def test_export_writes_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    file = folder.parent / "conv2.html"
    assert main(["export", str(folder), "--single-file", str(file), "--layers", "conv2", "--masters"]) == 0
    text = file.read_text()
    assert text.count("data:image/png;base64,") == 20 and "conv2/detail" in text and '"conv1"' not in text


def test_export_replaces_no_file_but_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    file = folder.parent / "README.md"
    for mine in ("# Mine\n", (folder / keys.PAGE).read_text()):
        file.write_text(mine)
        assert main(["export", str(folder), "--single-file", str(file)]) == 2
        assert "README.md is not a page of this program: choose another name" in capsys.readouterr().err
        assert file.read_text() == mine
    assert main(["export", str(folder), "--single-file", str(file), "--force"]) == 0
    assert main(["export", str(folder), "--single-file", str(file)]) == 0


def test_fetch_replaces_nobodys_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    mine = folder.parent / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("# Mine\n")
    assert main(["fetch", str(folder), str(mine)]) == 2
    assert "already holds README.md, which is not an atlas's" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["README.md"]


def test_share_signs_links_into_a_bucket(
    moto: MotoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{moto.new_bucket()}/an/atlas"
    synthetic.write_atlas(open_store(url), LAYERS, size=24)
    assert main(["share", url, str(tmp_path / "x.html")]) == 2
    assert "was never published" in capsys.readouterr().err
    publish(url)
    assert main(["share", url, str(tmp_path / "x.html"), "--layers", "conv1", "--expires", "2h"]) == 0
    text = (tmp_path / "x.html").read_text()
    data = json.loads(text.partition('id="embedded">')[2].partition("</script>")[0])
    link = data["links"][keys.image(Unit("channel", "conv1", 3))]
    assert "X-Amz-Expires=7200" in link and "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == open_store(url).get(keys.image(Unit("channel", "conv1", 3)))
    assert main(["share", url, str(tmp_path / "x.html"), "--expires", "8d"]) == 2
    assert "7 days" in capsys.readouterr().err


def test_share_of_a_folder_points_to_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    assert main(["share", str(folder), str(folder.parent / "x.html")]) == 2
    assert "feature-atlas export" in capsys.readouterr().err


def ended(process: subprocess.Popen[str]) -> int:
    """The exit status after Ctrl-C; no process is left behind."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=240)
    finally:
        process.kill()


def test_view_publishes_a_folder_serves_it_and_ends_quietly(folder: Path) -> None:
    command = [sys.executable, "-m", "feature_atlas", "view", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().strip() == str(folder)
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address) as answer:
            assert b"<h2>conv2</h2>" in answer.read()
        assert ended(process) == 0
        assert "Traceback" not in process.stderr.read()


def test_view_shows_a_private_bucket(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{moto.new_bucket()}/private"
    synthetic.write_atlas(open_store(url), LAYERS[:1], size=24)
    publish(url)
    command = [sys.executable, "-m", "feature_atlas", "view", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        address = process.stdout.readline().strip().partition("index.html")[0]
        picture = keys.image(Unit("channel", "conv1", 2))
        with urllib.request.urlopen(address + picture) as answer:
            assert answer.read() == open_store(url).get(picture)
        assert ended(process) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["publish", "{}/nothing"], "there is no atlas"),
        (["view", "{}/nothing"], "there is no atlas"),
        (["view", "memory:empty"], "there is no atlas"),
        (["fetch", "{}/nothing", "{}/x"], "there is no atlas"),
        (["fetch", "{}/atlas", "{}/x", "--layers", "conv9"], "did you mean conv"),
        (["fetch", "{}/atlas", "{}/atlas"], "is the atlas itself"),
        (["export", "{}/atlas", "--single-file", "{}/x.html"], "was never published"),
    ],
)
def test_wrong_requests_get_a_sentence(
    folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.replace("{}", str(folder.parent)) for part in arguments]) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err


def test_a_file_that_cannot_be_written_gets_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(folder)
    assert main(["export", str(folder), "--single-file", str(folder / "no" / "x.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_port_in_use_gets_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    publish(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["view", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "65536", "-5"])
def test_what_is_no_port_gets_a_sentence(folder: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(folder), "--port", port]) == 2
    assert f"--port {port} is no port: 1 to 65535" in capsys.readouterr().err


def test_what_was_published_on_s3_is_read_over_http_without_keys(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    bucket = moto.new_bucket()
    store = open_store(f"s3://{bucket}/x")
    synthetic.write_atlas(store, LAYERS, size=24)
    publish(store)
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = {"Version": "2012-10-17", "Statement": [everybody]}
    moto.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    anonymous = Atlas.open(f"{moto.url}/{bucket}/x")
    assert len(anonymous.done()) == 26 and anonymous.rows() == Atlas.open(store).rows()
