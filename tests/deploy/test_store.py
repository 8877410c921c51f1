"""The S3 server of docker-compose.yml, as far as it can be checked without it: its flags, and who may do what."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from feature_atlas import keys
from tests.conftest import ROOT
from tests.deploy import compose
from tests.deploy.test_trust import ALLOWED, ROLES, TRIED, UNIT

START = ROOT / "deploy/s3/start"
#: What `weed mini` of the pinned release knows, of what we might want to say, and how it writes it down.
FLAGS = {
    "dir": r"/\w+", "ip": r"[\d.]+", "ip.bind": r"[\d.]+", "s3.port": r"\d+", "s3.port.iceberg": r"\d+",
    "s3.port.lance": r"\d+", "s3.autoCreateBucket": "true|false", "s3.iam": "true|false", "s3.config": r"/[\w./-]+",
    "admin.ui": "true|false", "webdav": "true|false", "master.telemetry": "true|false",
}  # fmt: skip


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    found: dict[str, Any] = compose.services(BUCKET="ours")["s3"]
    return found


@pytest.fixture(scope="module")
def started(service: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command that the container would run, by its own entry point with an echo for the server; its identities."""
    config = tmp_path_factory.mktemp("s3") / "s3.json"
    (shell, script) = compose.words(service["entrypoint"])
    assert [script] == [str(volume).split(":")[1] for volume in service["volumes"] if str(START) in str(volume)]
    done = subprocess.run(
        [shell, START, *compose.words(service["command"])], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], **service["environment"], "S3_CONFIG": str(config), "S3_SERVER": "echo"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split(), config


def test_the_servers_flags_are_known_and_go_with_the_rest_of_the_file(
    service: dict[str, Any], started: tuple[list[str], Path]
) -> None:
    command, *given = started[0]
    flags = dict(flag.removeprefix("-").split("=", 1) for flag in given)
    assert command == "mini" and len(flags) == len(given)
    for name, value in flags.items():
        assert re.fullmatch(FLAGS[name], value), f"-{name}={value}"
    # Everything is in the volume, only S3 is served, to all of the network, and nobody is told
    assert flags["dir"] in [str(volume).split(":")[1] for volume in service["volumes"]]
    assert flags["ip.bind"] == "0.0.0.0" and flags["s3.port.iceberg"] == flags["s3.port.lance"] == "0"
    off = ("admin.ui", "webdav", "master.telemetry", "s3.iam", "s3.autoCreateBucket")
    assert {name: flags[name] for name in off} == dict.fromkeys(off, "false")
    # The same port everywhere
    port = flags["s3.port"]
    assert [str(row).split(":")[-1].split("/")[0] for row in service["ports"]] == [port]
    assert f":{port}/" in " ".join(service["healthcheck"]["test"])
    worker = compose.services()["worker"]["environment"]
    assert worker["AWS_ENDPOINT_URL_S3"] == f"http://s3:{port}"


def may(identity: dict[str, Any], verb: str, key: str) -> bool:
    """SeaweedFS's rule for an identity with actions: VERB, VERB:BUCKET, or a pattern over VERB:BUCKET/KEY."""
    action = {"get": "Read", "put": "Write", "delete": "Write", "list": "List"}[verb]
    target = f"{action}:ours/{key}" if key else f"{action}:ours"
    for rule in identity["actions"]:
        pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in rule)
        if rule in ("Admin", action, f"{action}:ours") or ("*" in rule and re.fullmatch(pattern, target)):
            return True
    return False


def test_every_role_has_an_identity_that_may_do_what_its_policy_allows_and_no_more(
    started: tuple[list[str], Path],
) -> None:
    identities = {row["name"]: row for row in json.loads(started[1].read_text())["identities"]}
    assert set(identities) == {"owner", *ROLES}
    assert identities["owner"]["actions"] == ["Admin"]
    for role in ROLES:
        assert may(identities[role], "list", "")
        assert not any(
            rule == "Admin" or re.fullmatch(r"(Read|Write|List)(:\*)?", rule) for rule in identities[role]["actions"]
        )
        for verb in ("get", "put"):
            tried = {key for who, what, key in TRIED if (who, what) == (role, verb)}
            found = {key for key in tried if may(identities[role], verb, f"toy/{key}")}
            assert found == {key for who, what, key in ALLOWED if (who, what) == (role, verb)}, (role, verb)
    # All that an atlas may consist of can be written by somebody who is not the owner, and seen by who looks
    made = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    made.discard(keys.NAME_PATTERN)
    for key in (f"toy/{value}x" if value.endswith("/") else f"toy/{value}" for value in made):
        assert may(identities["producer"], "put", key) or may(identities["worker"], "put", key), key
        assert may(identities["reader"], "get", key) != key.startswith(("toy/weights/", "toy/errors/")), key
    # Nobody writes into another bucket
    assert not [role for role in ROLES for rule in identities[role]["actions"] if ":ours" not in rule]


def test_identities_have_keys_of_their_own_and_one_account(
    service: dict[str, Any], started: tuple[list[str], Path]
) -> None:
    data = json.loads(started[1].read_text())
    assert started[1].stat().st_mode & 0o077 == 0
    assert {row["account"]["id"] for row in data["identities"]} == {row["id"] for row in data["accounts"]}
    pairs = {row["name"]: row["credentials"] for row in data["identities"]}
    given = compose.services()
    for role, name in (("owner", "ready"), ("producer", "producer"), ("worker", "worker"), ("worker", "worker-gpu")):
        environ = given[name]["environment"]
        assert pairs[role] == [
            {"accessKey": environ["AWS_ACCESS_KEY_ID"], "secretKey": environ["AWS_SECRET_ACCESS_KEY"]}
        ]
    secrets = [row["secretKey"] for rows in pairs.values() for row in rows]
    assert len(set(secrets)) == 4 and not [secret for secret in secrets if secret in " ".join(started[0])]
    # The owner's are nowhere else
    owner = pairs["owner"][0]["secretKey"]
    assert {name for name, row in given.items() if owner in str(row.get("environment"))} == {"s3", "ready"}


@pytest.mark.parametrize("missing", ["S3_ACCESS_KEY", "S3_WORKER_SECRET_KEY"])
def test_without_a_key_it_does_not_start(missing: str, service: dict[str, Any], tmp_path: Path) -> None:
    environ = {name: value for name, value in service["environment"].items() if name != missing}
    done = subprocess.run(
        ["sh", START, "mini"], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], **environ, "S3_CONFIG": str(tmp_path / "s3.json"), "S3_SERVER": "echo"},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"s3: S3_\w*ACCESS_KEY and S3_\w*SECRET_KEY are not both set\n", done.stderr)


def test_the_picture_of_a_unit_is_the_workers_alone(started: tuple[list[str], Path]) -> None:
    identities = {row["name"]: row for row in json.loads(started[1].read_text())["identities"]}
    writers = [name for name, row in identities.items() if may(row, "put", f"toy/{keys.image(UNIT)}")]
    assert writers == ["owner", "worker"]
