"""The Celery application: one task, no device in the parent, and a brake for its end."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from feature_atlas_worker.brake import Brake
from feature_atlas_worker.pulse import Pulse


def test_one_task_no_device_and_our_transport() -> None:
    code = """
import torch
from kombu import Connection
from feature_atlas_worker import app
assert [name for name in app.app.tasks if not name.startswith("celery.")] == ["feature_atlas.render"]
assert not torch.cuda.is_initialized()
for url in ("redis://h", "rediss://h", "redis+socket:///run/s?virtual_host=0"):
    assert Connection(url).get_transport_cls().__module__ == "feature_atlas_worker.transport", url
assert app.app.Worker.wait_for_soft_shutdown is not None and issubclass(app.app.Worker, app.celery_worker.Worker)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class TestBrake:
    @pytest.fixture
    def child(self) -> Any:
        """What a brake needs to know of its process."""
        lease, settings = SimpleNamespace(flags={}), SimpleNamespace(grace=10.0)
        return SimpleNamespace(pulse=Pulse(), lease=lease, settings=settings, touch=lambda: None)

    def test_nothing_stops_a_batch_by_itself(self, child: Any) -> None:
        brake = Brake(child, "atlas")
        assert not brake.between_batches()
        brake.step(1, 100)
        assert not brake.pulled()

    def test_a_cancelled_atlas_stops_at_once_and_no_other(self, child: Any) -> None:
        brake = Brake(child, "atlas")
        brake.step(1, 100)
        child.lease.flags = {"another": "cancelled", "atlas": "paused"}
        assert not brake.pulled()
        child.lease.flags = {"atlas": "cancelled"}
        assert brake.pulled()

    def test_an_ending_worker_begins_no_batch(self, child: Any) -> None:
        brake = Brake(child, "atlas")
        child.pulse.drain()
        assert brake.between_batches()
        brake.step(100, 100)
        assert brake.pulled()

    @pytest.mark.parametrize(("left", "stops"), [(1, False), (100_000_000, True)])
    def test_it_finishes_what_fits_into_the_grace_period(self, child: Any, left: int, stops: bool) -> None:
        brake = Brake(child, "atlas")
        brake.step(1, left + 2)
        brake.step(2, left + 2)
        child.pulse.drain()
        assert brake.pulled() is stops


def test_a_setting_that_means_nothing_is_said_when_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from feature_atlas_worker import app

    monkeypatch.setattr(app, "Watchdog", lambda *_, **__: SimpleNamespace(start=lambda: None))
    app._watch()
    assert "means nothing" not in caplog.text
    monkeypatch.setenv("FEATURE_ATLAS_ALLOWED_HOST", "weights.example.org")
    app._watch()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("the environment variable FEATURE_ATLAS_ALLOWED_HOST means nothing; did you mean")
    assert "FEATURE_ATLAS_ALLOWED_HOSTS" in said
