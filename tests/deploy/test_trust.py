"""Who may do what: the S3 policies on a real gateway, and secrets that stay out of whatever is said."""

from __future__ import annotations

import ast
import contextlib
import os
import re
from pathlib import Path

import pytest

from feature_atlas import keys
from feature_atlas.errors import RequestError, StoreError, WeightsError
from feature_atlas.s3 import S3Store
from feature_atlas.spec import Unit
from feature_atlas_worker.download import http_get
from tests.conftest import ROOT
from tests.nursery import Heard
from tests.servers import CephGateway, RedisServer

POLICIES = ROOT / "deploy/s3"
UNIT = Unit("channel", "conv", 3)
PLAN, WEIGHTS = "plans/0123456789abcdef.json", "weights/" + "0" * 64 + ".safetensors"
SHEET = "sheets/64/channel/conv/000.webp"
KEYS = (keys.ATLAS, PLAN, WEIGHTS, SHEET, keys.image(UNIT), keys.error(UNIT), keys.initial(UNIT))
#: (role, verb, key) that its policy allows; every other of these is refused.
ALLOWED = {
    ("worker", "get", keys.ATLAS), ("worker", "get", PLAN), ("worker", "get", WEIGHTS), ("worker", "get", SHEET),
    ("worker", "get", keys.image(UNIT)), ("worker", "get", keys.error(UNIT)), ("worker", "put", keys.image(UNIT)),
    ("worker", "put", keys.initial(UNIT)), ("worker", "get", keys.initial(UNIT)),
    ("worker", "put", keys.manifest(UNIT)), ("worker", "put", keys.dead(UNIT)), ("worker", "put", keys.error(UNIT)),
    ("worker", "put", keys.probe("w")), ("worker", "delete", keys.error(UNIT)), ("worker", "delete", keys.probe("w")),
    *(("producer", "get", key) for key in KEYS),
    *(("producer", "put", key) for key in (keys.ATLAS, PLAN, WEIGHTS, SHEET, keys.error(UNIT))),
    ("producer", "delete", keys.error(UNIT)), ("producer", "delete", SHEET),
    *(("reader", "get", key) for key in (keys.ATLAS, PLAN, SHEET, keys.image(UNIT), keys.initial(UNIT))),
}  # fmt: skip
ROLES = ("worker", "producer", "reader")
TRIED = {
    *((role, verb, key) for role in ROLES for verb in ("get", "put", "delete") for key in KEYS),
    *ALLOWED,
}  # fmt: skip


def test_policies_allow_what_each_role_needs_and_no_more(ceph: CephGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = ceph.new_bucket()
    users = {role: ceph.new_user(role) for role in ROLES}
    texts = {users[role]["AWS_ACCESS_KEY_ID"]: (POLICIES / f"{role}.json").read_text() for role in users}
    ceph.allow(bucket, texts)
    for key in {key for _, _, key in TRIED}:
        ceph.client().put_object(Bucket=bucket, Key=f"toy/{key}", Body=b"there")
    done: dict[tuple[str, str, str], bool] = {}
    for role, environ in users.items():
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        store = S3Store(f"s3://{bucket}/toy")
        assert len(list(store.list())) > 0
        actions = {"get": store.get, "put": lambda key, store=store: store.put(key, b"there"), "delete": store.delete}
        for verb in ("get", "put", "delete"):
            for _, _, key in sorted(row for row in TRIED if row[:2] == (role, verb)):
                try:
                    actions[verb](key)
                    done[role, verb, key] = True
                    ceph.client().put_object(Bucket=bucket, Key=f"toy/{key}", Body=b"there")
                except StoreError as error:
                    assert "no permission to" in str(error) and environ["AWS_SECRET_ACCESS_KEY"] not in str(error)
    assert set(done) == ALLOWED
    store = S3Store(f"s3://{ceph.new_bucket()}/toy")  # of somebody else
    with pytest.raises(StoreError, match="no permission"):
        store.put(keys.ATLAS, b"x")


SECRET = "planted-4f1e9c"


@pytest.mark.parametrize(
    ("environ", "argv"),
    [
        ({"FEATURE_ATLAS_BROKER": f"redis://worker:{SECRET}@127.0.0.1:1/0"}, ["worker", "--store", "/tmp"]),
        ({"FEATURE_ATLAS_BROKER": f"redis://:{SECRET}@127.0.0.1:{{port}}/0"}, ["doctor"]),
        ({"FEATURE_ATLAS_BROKER": f"rediss://u:{SECRET}@127.0.0.1:{{port}}/0"}, ["enqueue", "/nowhere/atlas"]),
        ({"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
         ["status", "s3://atlases/x"]),
        ({"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": SECRET,
          "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, ["doctor", "s3://atlases/x"]),
        ({}, ["doctor", f"s3://AK:{SECRET}@atlases/x"]),
    ],
)  # fmt: skip
def test_no_secret_is_in_what_a_failing_command_says(
    environ: dict[str, str], argv: list[str], valkey: RedisServer
) -> None:
    """With ``--debug``, which says all that is said without, and more."""
    given = {name: value.replace("{port}", str(valkey.port)) for name, value in environ.items()}
    command = Heard("feature_atlas", [*argv, "--debug"], {**os.environ, "AWS_MAX_ATTEMPTS": "1", **given})
    with contextlib.closing(command):
        said = "".join(command.communicate(120))
    assert command.returncode in (2, 5) and said
    assert SECRET not in said


@pytest.mark.parametrize("url", [f"https://u:{SECRET}@127.0.0.1:1/w.pth", f"http://127.0.0.1:1/w.pth?X-Sig={SECRET}"])
def test_no_secret_of_a_weights_url_is_said(url: str) -> None:
    with pytest.raises((RequestError, WeightsError)) as caught:
        http_get(url)
    assert SECRET not in str(caught.value)


def test_nothing_is_pickled_and_weights_are_loaded_without_code() -> None:
    """Who loads a pickle runs what it says: only torch.load with weights_only reads one here."""
    found = []
    for room in ("shared", "producer", "worker"):
        for file in (ROOT / room).rglob("*.py"):
            found += [f"{file.relative_to(ROOT)}: {use}" for use in _dangerous(file)]
    assert found == []


def _dangerous(file: Path) -> list[str]:
    uses = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "torch.hub.load", "yaml.load"):
            uses.append(name)
        if name == "torch.load" and "weights_only=True" not in ast.unparse(node):
            uses.append("torch.load")
        if any(word.arg == "shell" for word in node.keywords):
            uses.append("shell")
    return uses


def test_every_threat_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\|([^|\n]+)\|[^|\n]+\|([^|\n]+)\|$", (ROOT / "deploy/README.md").read_text(), re.MULTILINE)
    threats = {threat.strip(): re.findall(r"`([^`]+)`", tested) for threat, tested in rows if "test_" in tested}
    assert len(threats) >= 9
    for threat, named in threats.items():
        folder = ROOT
        for name in named:  # a bare name is beside the one before it
            file = ROOT / name if "/" in name else folder / name
            assert file.is_file(), f"{threat}: {name}"
            folder = file.parent
