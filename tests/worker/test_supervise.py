"""Supervision: what ends is started afresh, and everything ends with the supervisor.  The workers are dummies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_atlas.errors import DeviceError, RequestError
from feature_atlas_worker import supervise, visible
from feature_atlas_worker.supervise import Supervisor
from feature_atlas_worker.visible import check_device, gpus
from tests.e2e.farm import is_over
from tests.servers import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
IGNORE = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
STUBBORN = [sys.executable, "-c", IGNORE]


def counting(folder: Path, status: int) -> list[str]:
    """A worker that leaves a line with its name and ends."""
    log = str(folder / "log")
    write = f"open({log!r}, 'a').write(sys.argv[1] + os.environ['X'] + chr(10))"
    return [sys.executable, "-c", f"import sys, os; {write}; sys.exit({status})"]


def starts(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().split() if log.exists() else []


def test_each_worker_has_its_name_and_environment_and_is_started_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_LONGEST_WAIT", 0.0)
    with Supervisor({"a": {"X": "1"}, "b": {"X": "2"}}, command=counting(tmp_path, 75)) as supervisor:
        assert supervisor.run(lambda: min(map(starts(tmp_path).count, ("a1", "b2"))) >= 3, every=0.05) == 0


def test_one_that_fails_at_once_waits_ever_longer() -> None:
    with Supervisor({"a": {}}, command=[sys.executable, "-c", "raise SystemExit(1)"]) as supervisor:
        (member,) = supervisor.members
        end = time.monotonic() + 1.5
        supervisor.run(lambda: time.monotonic() > end, every=0.05)
        assert 1 <= len(member.exits) <= 2 and member.due > time.monotonic() - 1


def test_a_wrong_request_is_not_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor({"a": {"X": ""}, "b": {"X": ""}}, command=counting(tmp_path, 2)) as supervisor:
        assert supervisor.run(every=0.05) == 2
    assert sorted(starts(tmp_path)) == ["a", "b"]
    assert caplog.text.count("not started again") == 2 and "starts afresh" not in caplog.text


def test_at_the_end_all_are_asked_and_the_stubborn_are_killed(tmp_path: Path) -> None:
    with Supervisor({"a": {}}, command=STUBBORN, grace=-14.5, logs=tmp_path) as supervisor:
        supervisor.run(lambda: (tmp_path / "a.log").exists() and (tmp_path / "a.log").read_text() == "1\n", every=0.05)
        process = supervisor.members[0].process
        assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_sigterm_ends_the_run(tmp_path: Path) -> None:
    with Supervisor({"a": {}}, command=SLEEP, grace=0) as supervisor:
        looks = iter(range(1000))

        def until() -> bool:
            if next(looks) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

        assert supervisor.run(until, every=0.05) == 0
        assert supervisor.asked == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_it_says_when_told_to_end_has_the_form_of_its_logs() -> None:
    code = f"""
import os
from feature_atlas import logs
from feature_atlas_worker.supervise import Supervisor
logs.set_up(os.environ["FORM"], 20)
with Supervisor({{"a": {{}}}}, command={SLEEP!r}, grace=0) as supervisor:
    supervisor.run(lambda: os.kill(os.getpid(), 15) and False, every=0.05)
"""
    for form in ("json", "text"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "FORM": form}
        )
        lines = done.stderr.splitlines()
        assert any("jobs in hand are finished" in line for line in lines), done.stderr
        assert all(line.startswith("{") for line in lines) is (form == "json"), done.stderr


def test_workers_end_with_a_supervisor_that_is_killed() -> None:
    code = f"""
from feature_atlas_worker.supervise import Supervisor
with Supervisor({{"a": {{}}, "b": {{}}}}, command={SLEEP!r}) as supervisor:
    def tell():
        if all(member.process for member in supervisor.members):
            print(*(member.process.pid for member in supervisor.members), flush=True)
        return False
    supervisor.run(tell, every=0.2)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(pids) == 2
    wait_until(lambda: all(is_over(pid) for pid in pids), "the end of the workers")


def test_gpus_are_counted_without_touching_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus("all") == ["0", "1"] and gpus("1") == ["1"]
    with pytest.raises(DeviceError, match="this machine has 2"):
        gpus("2")
    with pytest.raises(RequestError, match="say all"):
        gpus("first")


def test_what_is_visible_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert gpus("all") == ["3", "GPU-abc"] and gpus("1") == ["GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(DeviceError, match="no GPU is visible"):
        gpus("all")


def test_a_gpu_that_is_not_here_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("auto"), check_device("cpu")
    with pytest.raises(RequestError, match="auto, cpu, cuda or cuda:N"):
        check_device("tpu")
    with pytest.raises(DeviceError, match=r"no device 'cuda:99': torch .* sees .* here"):
        check_device("cuda:99")
    monkeypatch.setattr(visible, "_LOOK", "print('torch 2'); print('cuda:0 (NVIDIA H100)')")
    check_device("cuda"), check_device("cuda:0")
    with pytest.raises(DeviceError, match=r"sees cuda:0 \(NVIDIA H100\) here"):
        check_device("cuda:1")
    monkeypatch.setattr(visible, "_LOOK", "raise RuntimeError('the driver is too old')")
    with pytest.raises(DeviceError, match="the driver is too old"):
        check_device("cuda")
