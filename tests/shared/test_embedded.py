"""The embedded broker: keeps its data, and never outlives its maker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feature_atlas.broker import connect
from feature_atlas.embedded import EmbeddedBroker
from feature_atlas.errors import BrokerError
from tests.servers import wait_until


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    for expected in (None, b"kept"):
        with EmbeddedBroker(str(tmp_path)) as broker:
            client = connect(broker.url)
            assert client.get("key") == expected
            client.set("key", "kept")
            client.close()
    assert not alive(broker.pid)


def test_its_folder_and_socket_are_for_nobody_else(tmp_path: Path) -> None:
    with EmbeddedBroker(str(tmp_path)) as broker:
        assert broker.folder.stat().st_mode & 0o077 == 0
        assert (broker.folder / "s").stat().st_mode & 0o077 == 0
        assert len(str(broker.folder / "s")) <= 100


def test_a_second_one_of_the_same_name_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(str(tmp_path)),
        pytest.raises(BrokerError, match="already at work"),
        EmbeddedBroker(str(tmp_path)),
    ):
        pass


def test_it_is_gone_when_its_maker_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from feature_atlas.embedded import EmbeddedBroker
with EmbeddedBroker({str(tmp_path)!r}) as broker:
    print(broker.pid, flush=True)
    time.sleep(60)
"""
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert maker.stdout is not None
    pid = int(maker.stdout.readline())
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    wait_until(lambda: not alive(pid), "the end of the broker")
    with EmbeddedBroker(str(tmp_path)) as broker:
        assert alive(broker.pid)


def test_a_name_far_too_long_for_a_socket_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)
    monkeypatch.setenv("XDG_CACHE_HOME", str(deep))
    monkeypatch.setenv("HOME", str(deep))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with EmbeddedBroker(str(tmp_path)) as broker:
        connect(broker.url).close()
    assert not deep.exists()
