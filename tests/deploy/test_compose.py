"""docker-compose.yml, as far as it can be checked without an engine: schema, interpolation, settings, commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_atlas.cli import build_parser
from feature_atlas.messages import QUEUE
from feature_atlas.settings import Settings
from tests.conftest import ROOT
from tests.deploy import compose

OURS = ("ready", "producer", "worker", "worker-gpu")
ONE_SHOT = ("ready", "producer")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose.services()


@pytest.fixture(scope="module")
def text() -> str:
    return compose.FILE.read_text()


def test_it_follows_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(compose.FILE)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_check_notices_a_slip(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yml").write_text(text.replace("healthcheck:", "healthchek:", 1))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "x.yml"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize("missing", [name for name, value in compose.secrets().items() if SECRET.search(name)])
def test_a_missing_secret_is_named(missing: str) -> None:
    done = compose.config({name: value for name, value in compose.secrets().items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr and "deploy/secrets > .env" in done.stderr


def test_no_secret_stands_in_the_file(text: str) -> None:
    for name, value in re.findall(r"^ *([A-Z_0-9]+): *(.+)$", text, re.MULTILINE):
        if SECRET.search(name) and not name.endswith("__FILE"):
            assert re.fullmatch(r"\$\{[A-Z_0-9]+:\?[^}]+\}", value), f"{name}: {value}"


def test_every_variable_is_explained_in_the_example_and_none_besides(text: str) -> None:
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_0-9]+)", text))
    assert used == set(compose.variables((ROOT / ".env.example").read_text()))


def test_secrets_are_made_for_every_password_and_differ() -> None:
    example = compose.variables((ROOT / ".env.example").read_text())
    made = {name: value for name, value in compose.secrets().items() if example[name] != value}
    assert set(made) == {name for name in example if SECRET.search(name) or name.endswith("_KEY")}
    assert len(set(made.values())) == len(made) and all(re.fullmatch("[0-9a-f]{48}", v) for v in made.values())


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]), f"{name}: {service['image']}"


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting_that_loads(name: str, services: dict[str, Any]) -> None:
    environ = services[name]["environment"]
    assert Settings.unknown(environ) == []
    settings = Settings.load(environ)
    assert settings.broker.startswith("redis://")
    if "worker" in name:
        assert settings.allowed_stores == ("s3://atlases/",)


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_ours_is_one(name: str, services: dict[str, Any]) -> None:
    args = build_parser().parse_args(compose.words(services[name]["command"]))
    assert callable(args.run)


def test_services_are_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), f"{name} runs as root"
        assert not {"privileged", "network_mode", "pid", "ipc"} & set(service), name
        assert service["restart"] == {"ready": "on-failure", "producer": "no"}.get(name, "unless-stopped"), name


def test_services_that_stay_say_whether_they_are_well(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert ("healthcheck" in service) == (name not in ONE_SHOT), name


def test_nothing_listens_beyond_this_machine(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(str(port).startswith("127.0.0.1:") for port in ports)
    assert "ports" not in services["valkey"] and list(services["valkey"]["networks"]) == ["inside"]


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_a_worker_may_end_in_order(name: str, services: dict[str, Any]) -> None:
    """The grace period of a batch, and 15 s in which the supervisor waits (Supervisor.stop), fit before the kill."""
    settings = Settings.load(services[name]["environment"])
    assert compose.seconds(services[name]["stop_grace_period"]) >= settings.grace + 15 + 10


def test_a_gpu_is_reserved_and_only_for_the_gpu_profile(services: dict[str, Any]) -> None:
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and "deploy" not in services["worker"]
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert (profiles["worker"], profiles["worker-gpu"]) == (["cpu"], ["gpu"])
    assert profiles["valkey"] is profiles["s3"] is profiles["ready"] is None


def test_nobody_works_before_broker_and_store_are_ready(services: dict[str, Any]) -> None:
    assert {name: row["condition"] for name, row in services["ready"]["depends_on"].items()} == {
        "valkey": "service_healthy", "s3": "service_healthy",
    }  # fmt: skip
    for name in ("worker", "worker-gpu", "producer"):
        assert services[name]["depends_on"] == {"ready": {"condition": "service_completed_successfully"}}


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    mounted = [source for service in services.values() for source in compose.sources(service)]
    assert mounted and all(source.exists() for source in mounted)


#: What celery-exporter's command line takes that we might want to say; as a variable, each is CE_ and its name.
EXPORTER = {
    "BROKER_URL",
    "BROKER_TRANSPORT_OPTION",
    "QUEUES",
    "RETRY_INTERVAL",
    "PORT",
    "LOG_LEVEL",
    "WORKER_TIMEOUT",
    "METRIC_PREFIX",
}


def test_the_exporter_counts_our_queue_where_prometheus_looks_for_it(services: dict[str, Any]) -> None:
    service, alerts = services["celery-exporter"], (ROOT / "deploy/metrics/alerts.yml").read_text()
    environ = service["environment"]
    assert {name.removeprefix("CE_") for name in environ} <= EXPORTER and all(
        name.startswith("CE_") for name in environ
    )
    assert environ["CE_QUEUES"] == QUEUE and f'celery_queue_length{{queue_name="{QUEUE}"}}' in alerts
    assert environ["CE_BROKER_URL"].startswith("redis://monitor:")
    scraped = yaml.safe_load((ROOT / "deploy/metrics/prometheus.yml").read_text())["scrape_configs"]
    (target,) = [row["static_configs"][0]["targets"][0] for row in scraped if "static_configs" in row]
    assert target == "celery-exporter:9808"  # its own default
    assert ":9808/health" in " ".join(service["healthcheck"]["test"])


def test_the_broker_keeps_its_data(services: dict[str, Any]) -> None:
    broker, store = services["valkey"], services["s3"]
    assert any("valkey:/data" in str(volume) for volume in broker["volumes"])
    assert any("s3:/data" in str(volume) for volume in store["volumes"])
    assert set(yaml.safe_load(compose.FILE.read_text())["volumes"]) >= {"valkey", "s3", "weights"}
