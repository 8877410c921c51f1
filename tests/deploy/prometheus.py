"""A real Prometheus over workers of the test, with the alert rules and dashboard of deploy/metrics."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, needed
from tests.servers import Server, answers_http

FOLDER = ROOT / "deploy/metrics"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana/dashboard.json").read_text())
#: Counted by Celery's exporter, which is not part of the tests.
FOREIGN = "celery_queue_length"


def expressions() -> dict[str, str]:
    """Title of a panel, or name of an alert -> what it asks."""
    price = DASHBOARD["templating"]["list"][0]["query"]
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$price", price)
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    return {**panels, **{rule["alert"]: rule["expr"] for rule in rules}}


def names(expression: str) -> set[str]:
    """The metrics that an expression speaks of."""
    return set(re.findall(r"\b(?:feature_atlas|celery)_\w+", expression))


class Prometheus(Server):
    """Prometheus that scrapes some ports of this machine once a second."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        super().__init__(folder)
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "alerts.yml")]
        targets = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        config["scrape_configs"] = [{"job_name": "workers", "static_configs": targets}]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def command(self) -> list[str]:
        return [
            needed("prometheus", of="prometheus"), f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def answers(self) -> bool:
        return answers_http(f"http://127.0.0.1:{self.port}/-/ready")

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of every series that an expression gives now."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{query}", timeout=60) as answer:
            data = json.load(answer)["data"]
        return [(row["metric"], float(row["value"][1])) for row in data["result"]]

    def firing(self) -> set[str]:
        """The alerts that are raised or about to be."""
        return {labels["alertname"] for labels, _ in self.ask("ALERTS")}
