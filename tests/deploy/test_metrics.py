"""Metrics: alert rules tried on made-up series, a dashboard that asks for what there is, and counters that survive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feature_atlas.monitor import workers
from tests.conftest import ROOT, needed
from tests.deploy import kubernetes, prometheus
from tests.e2e.farm import Farm, grow
from tests.servers import RedisServer, answers_http, free_port, wait_until

Sample = dict[tuple[str, str], float]


def promtool(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    tool = needed("promtool", of="prometheus")
    return subprocess.run([tool, *argv], capture_output=True, text=True, timeout=240)


def test_the_configuration_and_the_rules_are_valid(tmp_path: Path) -> None:
    text = (prometheus.FOLDER / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(prometheus.FOLDER)))
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0 and "11 rules found" in done.stdout, done.stdout + done.stderr


def test_alerts_are_raised_when_they_should_and_only_then(tmp_path: Path) -> None:
    for file in (prometheus.FOLDER / "alerts.yml", Path(__file__).with_name("alerts_test.yml")):
        shutil.copy(file, tmp_path)
    done = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_go_to_kubernetes_as_they_are() -> None:
    text = kubernetes.text("../metrics")
    assert "NobodyWorks" in text and '"uid": "feature-atlas"' in text and "grafana_dashboard" in text


def scrape(port: int) -> Sample:
    """(name, value of the first label) -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def farm(valkey: RedisServer, tmp_path: Path) -> Iterator[Farm]:
    layers = {"plain": 12, "slow": 6, "broken": 1}
    with Farm(tmp_path, valkey.url, grow(tmp_path / "atlas", layers)) as farm:
        yield farm


def test_counters_outlive_a_killed_process_and_the_port_its_owner(farm: Farm, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "metrics"
    folder.mkdir()
    environ = {"FEATURE_ATLAS_METRICS": str(port), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    farm.enqueue()
    first = farm.start(**environ)
    wait_until(lambda: len(farm.atlas.done()) >= 13, "the first pictures")
    assert first.kill_child()
    second = farm.start(**environ)
    farm.wait(left=1)

    def told() -> Sample:
        """What is served; empty while nobody serves."""
        try:
            return scrape(port)
        except OSError:
            return {}

    def counted(*outcomes: str) -> float:
        found = told()
        return sum(found.get(("feature_atlas_jobs_total", outcome), 0) for outcome in outcomes)

    # A picture that was stored and not yet counted when its process was killed is found by the next one
    wait_until(lambda: counted("ok", "skipped") >= 18, "every picture is counted")
    wait_until(lambda: counted("given_up") == 1, "the one that is given up is counted")
    found: Sample = {}
    wait_until(lambda: bool(found.update(told()) or found), "an answer")
    assert found["feature_atlas_broker_up", ""] == 1 and found["feature_atlas_queue_jobs", "waiting"] == 0
    for phase in ("wait", "load", "render", "encode", "upload"):
        assert found["feature_atlas_phase_seconds_total", phase] > 0, phase
    assert found["feature_atlas_batch_jobs_sum", ""] >= 18
    # Whoever asks is told of what there is, by any of the two
    known = {name for name, _ in found} | {"feature_atlas_gpu_memory_bytes", prometheus.FOREIGN}
    for title, expression in prometheus.expressions().items():
        assert prometheus.names(expression) <= known, title
    first.stop()
    wait_until(lambda: counted("ok", "skipped") >= 18, "the other one serves")
    assert second.process.poll() is None


def test_every_rendering_process_that_died_is_counted(farm: Farm) -> None:
    """Also by a worker without a supervisor, which has no folder for its counters yet."""
    port = free_port()
    worker = farm.start(FEATURE_ATLAS_METRICS=str(port))
    name = ("feature_atlas_trouble_total", "process")

    def there() -> bool:
        return worker.child in {beat.pid for beat in workers(farm.client)}

    wait_until(there, "the first process")
    wait_until(lambda: answers_http(f"http://127.0.0.1:{port}/metrics"), "the metrics")
    assert scrape(port)[name] == 0
    for dead in (1, 2):
        assert worker.kill_child()
        wait_until(lambda dead=dead: scrape(port)[name] == dead, f"{dead} counted")  # type: ignore[misc]
        wait_until(there, "the next one")
    assert scrape(port)[name] == 2


#: The command ``worker``, whose processes render for nothing: GPUs are only numbers here.
CHEAP = """
import sys
from feature_atlas_worker import supervise
class Cheap(supervise.Supervisor):
    def __init__(self, environs, **options):
        environs = {name: {**environ, "FEATURE_ATLAS_DEVICE": "cpu"} for name, environ in environs.items()}
        super().__init__(environs, command=[sys.executable, "-m", "tests.e2e.cheap_worker"], **options)
supervise.Supervisor = Cheap
from feature_atlas.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_one_port_answers_for_the_workers_of_all_gpus(farm: Farm, tmp_path: Path) -> None:
    port = free_port()
    argv = [sys.executable, "-c", CHEAP, "worker", "--gpus", "0,1", "--broker", farm.broker, "--store", farm.atlas.url]
    environ = {**os.environ, **farm.environ, "CUDA_VISIBLE_DEVICES": "0,1", "FEATURE_ATLAS_METRICS": str(port),
               "TMPDIR": str(tmp_path), "FEATURE_ATLAS_BATCH": "2"}  # fmt: skip
    farm.enqueue()
    with (tmp_path / "both.log").open("wb") as log:
        both = subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=log, stderr=log)
    try:
        farm.wait(120, left=1)
        wait_until(lambda: scrape(port)["feature_atlas_jobs_total", "given_up"] == 1, "all is counted", 60)
        wait_until(lambda: scrape(port)["feature_atlas_workers", ""] == 2, "the slower one's first sign of life", 60)
        # Whichever drew a picture, it is counted once, under the one port
        assert scrape(port)["feature_atlas_jobs_total", "ok"] == 18
        (folder,) = {file.parent for file in tmp_path.rglob("counter_*.db")}
        drew = {file.stem for file in folder.glob("counter_*.db")}
        assert len(drew) >= 2, "both write into one folder"
        names = {beat.worker.split("-")[0] for beat in workers(farm.client)}
        assert names == {"gpu0", "gpu1"}
    finally:
        both.terminate()
        assert both.wait(60) == 0
    assert not folder.exists(), "it goes with the command"


def test_logs_say_what_they_are_about(farm: Farm) -> None:
    farm.enqueue()
    worker = farm.start(FEATURE_ATLAS_LOG="json")
    farm.wait(left=1)
    # A message on its way to the worker is in no list: the queue may look empty before the broken job is given up.
    wait_until(lambda: " is given up: " in worker.log.read_text(), "the broken job is given up")
    wait_until(worker.kill_child, "a child to be killed")
    wait_until(lambda: "exited with 'signal 9" in worker.log.read_text(), "its death to be told")
    assert worker.stop() == 0
    rows = [json.loads(line) for line in worker.log.read_text().splitlines()]  # every line, Celery's too
    assert all({"time", "level", "logger", "message", "pid"} <= set(row) for row in rows)
    jobs = [row for row in rows if row.get("job", "").startswith("plain:")]
    assert len({row["job"] for row in jobs}) == 12
    assert {(row["atlas"], row["layer"], row["variant"]) for row in jobs} == {(farm.atlas.url, "plain", "channel")}
    # Every job names the batch in which it was drawn, and a batch is no more than it may be
    drawn = [row for row in jobs if row["message"].endswith(": ok")]
    batches = [row["batch"] for row in drawn]
    assert len(drawn) == 12 and 2 <= len(set(batches)) <= 12
    assert max(batches.count(batch) for batch in batches) <= 8
    assert any("Traceback" in row.get("traceback", "") or row["level"] == "error" for row in rows)


def test_the_command_line_logs_as_json_too(tmp_path: Path) -> None:
    environ = {**os.environ, "FEATURE_ATLAS_LOG": "json"}
    argv = [sys.executable, "-m", "feature_atlas", "worker", "--broker", "redis://127.0.0.1:1/0", "--store", "/tmp"]
    done = subprocess.run([*argv, "--debug"], capture_output=True, text=True, env=environ)
    (line, sentence) = done.stderr.splitlines()
    assert json.loads(line)["command"] == "worker" and "Traceback" in json.loads(line)["traceback"]
    assert sentence.startswith("feature-atlas: no broker at")
    assert done.returncode == 5
