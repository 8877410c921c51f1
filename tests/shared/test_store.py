"""One suite for every store, and what only a directory can suffer."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_atlas.errors import ObjectNotFound, RequestError, StoreError
from feature_atlas.objects import check_key, check_prefix
from feature_atlas.store import DirectoryStore, MemoryStore, Store, join, open_store
from tests.servers import S3Endpoint, wait_until

HOSTILE_KEYS = [
    "", "/", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "/a", ".hidden", "a/.part-1", "a\\b", "a b", "a\n",
    "a\0b", "é", "a:b", "a..b", "٣", "s3://bucket/key", "x" * 601, "a?b", "a#b", "%2e%2e/x",
]  # fmt: skip
HOSTILE_PREFIXES = ["/", "/etc/", "../", "a/../", "a//", ".", "a b", "é", "images/..", "a\n"]

#: Puts one key over and over, bytes of one kind, until it is killed.
PUT_FOR_EVER = """
import sys
from feature_atlas.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
while True:
    for byte in b"ab":
        store.put("images/v/l/00000.png", bytes([byte]) * 3_000_000)
"""


class StoreContract:
    """What every store promises; see feature_atlas.objects."""

    #: A listing of more than one page, for stores that have pages.
    many = 1_100
    #: Other processes write here as well, and may be killed.
    shared = True

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def fetch(self, link: str) -> bytes:
        with urllib.request.urlopen(link, timeout=30) as answer:
            return bytes(answer.read())

    def test_gives_back_what_was_put(self, store: Store) -> None:
        for data in (b"", b"x", bytes(range(256)) * 4, b"\r\n\0\xff\x1a"):
            store.put("images/channel/layer2.0.conv3/00017.png", data, content_type="image/png", immutable=True)
            assert store.get("images/channel/layer2.0.conv3/00017.png") == data

    def test_a_second_put_replaces_the_first(self, store: Store) -> None:
        store.put("a.json", b"a long first version")
        before = list(store.list())
        store.put("a.json", b"short")
        assert store.get("a.json") == b"short"
        (after,) = store.list()
        assert after.size == 5
        assert after.version != before[0].version

    def test_every_change_changes_the_version(self, store: Store) -> None:
        """Equal sizes within one tick of the clock too: publish skips by it."""
        versions = set()
        for byte in b"abcdefgh":
            store.put("a", bytes([byte]) * 10)
            versions.update(info.version for info in store.list())
        assert len(versions) == 8

    def test_a_missing_key_is_named(self, store: Store) -> None:
        store.put("there/is", b"one")
        for read in (store.get, lambda key: store.get_range(key, 0, 4), lambda key: store.get_range(key, 0, 0)):
            with pytest.raises(ObjectNotFound, match=r"no object .*there/is-none") as caught:
                read("there/is-none")
            assert isinstance(caught.value, StoreError) and isinstance(caught.value, KeyError)
        with pytest.raises(ObjectNotFound):
            store.get("there")  # a directory is no object

    def test_ranges_end_where_the_object_ends(self, store: Store) -> None:
        store.put("a", b"0123456789")
        for start, length, expected in (
            (0, 4, b"0123"), (3, 4, b"3456"), (8, 10, b"89"), (10, 5, b""), (99, 5, b""), (2, 0, b""),
            (0, 10, b"0123456789"),
        ):  # fmt: skip
            assert store.get_range("a", start, length) == expected

    def test_a_range_of_an_empty_object_is_empty(self, store: Store) -> None:
        store.put("a", b"")
        assert store.get_range("a", 0, 5) == b""

    def test_deleting_twice_is_no_error(self, store: Store) -> None:
        store.put("a/b", b"1")
        store.put("a/c", b"2")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("a")
        store.delete("never/was/there")
        assert [info.key for info in store.list()] == ["a/c"]

    def test_lists_in_the_order_of_keys(self, store: Store) -> None:
        """As bytes sort: '-' and '.' before '/' before digits before letters, whatever is a directory."""
        keys = ["a-b/1", "a.json", "a/00002", "a/00010", "a/b/1", "a0", "aB", "ab/1", "B", "_x"]
        for key in keys:
            store.put(key, key.encode())
        assert [(info.key, info.size) for info in store.list()] == [(key, len(key)) for key in sorted(keys)]

    def test_lists_by_prefix_and_not_by_folder(self, store: Store) -> None:
        for key in ("images/channel/l/1", "images/channel/l/2", "images/channel2/l/1", "images2/x", "imag"):
            store.put(key, b"")
        expected = {
            "images/": 3, "images": 4, "imag": 5, "images/channel/": 2, "images/channel": 3, "images/channel/l/2": 1,
            "images/channel/l/2/": 0, "nothing/": 0, "": 5,
        }  # fmt: skip
        assert {prefix: len(list(store.list(prefix))) for prefix in expected} == expected

    def test_a_listing_says_when(self, store: Store) -> None:
        store.put("a", b"")
        (info,) = store.list()
        assert abs(info.modified - time.time()) < 60

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert list(store.list()) == []
        assert list(store.list("images/")) == []

    def test_lists_more_than_a_page(self, store: Store) -> None:
        keys = [f"images/v/l/{n:05d}.png" for n in range(self.many)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.put(key, b""), reversed(keys)))
        assert [info.key for info in store.list("images/v/")] == keys

    def test_refuses_hostile_keys(self, store: Store) -> None:
        for key in HOSTILE_KEYS:
            self.check_refused(store, key)
        assert list(store.list()) == []

    def check_refused(self, store: Store, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, b"x"), lambda: store.get(key), lambda: store.get_range(key, 0, 1),
            lambda: store.delete(key), lambda: store.link(key),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(RequestError, match="is not a key"):
                call()

    def test_refuses_hostile_prefixes(self, store: Store) -> None:
        for prefix in HOSTILE_PREFIXES:
            with pytest.raises(RequestError, match="cannot begin a key"):
                list(store.list(prefix))

    def test_a_link_leads_to_the_object(self, store: Store) -> None:
        store.put("images/v/l/00000.png", b"picture", content_type="image/png")
        assert self.fetch(store.link("images/v/l/00000.png")) == b"picture"

    def test_stores_large_objects(self, store: Store) -> None:
        data = os.urandom(2**20) * 9
        store.put("packs/v/l.tar", data)
        assert store.get("packs/v/l.tar") == data
        assert store.get_range("packs/v/l.tar", 5 * 2**20 - 3, 6) == data[5 * 2**20 - 3 : 5 * 2**20 + 3]

    def test_readers_see_whole_objects_while_others_write(self, store: Store) -> None:
        """Each version is one letter in a length of its own; a mixture of two would show."""
        versions = {letter: bytes([letter]) * (1_000 * (letter - 90)) for letter in b"abcdef"}
        store.put("a", versions[97])
        done = threading.Event()

        def write(letter: int) -> None:
            for _ in range(15):
                store.put("a", versions[letter])

        def read() -> int:
            reads = 0
            while not (done.is_set() and reads):
                data = store.get("a")
                assert data == versions[data[0]]
                (info,) = store.list("a")
                assert info.size in {len(version) for version in versions.values()}
                reads += 1
            return reads

        with ThreadPoolExecutor(6) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for writer in [pool.submit(write, letter) for letter in b"cdef"]:
                writer.result()
            done.set()
            assert all(reader.result() > 0 for reader in readers)
        assert store.get("a") in versions.values()

    def test_a_writer_killed_in_the_middle_tears_nothing(self, store: Store) -> None:
        if not self.shared:
            return  # nobody else can write here
        for delay in (0.0, 0.03, 0.09):
            command = [sys.executable, "-c", PUT_FOR_EVER, store.url]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
                wait_until(lambda: bool(list(store.list("images/"))), "the first put")
                time.sleep(delay)
                writer.send_signal(signal.SIGKILL)
            data = store.get("images/v/l/00000.png")
            assert len(data) == 3_000_000 and len(set(data)) == 1
            assert [info.key for info in store.list()] == ["images/v/l/00000.png"]
        store.put("images/v/l/00000.png", b"whole")  # a dead writer holds no lock
        assert store.get("images/v/l/00000.png") == b"whole"


class TestMemory(StoreContract):
    shared = False

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("contract")

    def fetch(self, link: str) -> bytes:
        assert link == "memory:contract/images/v/l/00000.png"  # memory has no URLs
        return b"picture"


class TestDirectory(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return DirectoryStore(tmp_path / "an atlas é")


class TestDirectoryWithFsync(StoreContract):
    many = 50

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return DirectoryStore(tmp_path / "atlas", fsync=True)


class S3Contract(StoreContract):
    """The same through boto3; AWS_* variables lead subprocesses to the server too."""

    def open(self, server: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> Store:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        return open_store(f"s3://{server.new_bucket()}/some/prefix")


class TestCeph(S3Contract):
    @pytest.fixture
    def store(self, ceph: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> Store:
        return self.open(ceph, monkeypatch)


class TestMoto(S3Contract):
    many = 50  # slow, and Ceph has the pages
    shared = False  # nor does a mock tell how a real server bears a killed writer

    @pytest.fixture
    def store(self, moto: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> Store:
        return self.open(moto, monkeypatch)


# -- the directory alone


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "atlas")


def in_a_child(script: str, *arguments: object, before: list[str] | None = None) -> str:
    """What a Python script prints, run in another process."""
    command = [*(before or []), sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


PUT_AND_SAY = """
import sys
from feature_atlas.errors import StoreError
from feature_atlas.store import open_store
try:
    open_store(sys.argv[1]).put("images/00000.png", b"new" * 100_000)
except StoreError as error:
    print(error)
"""


GET_AND_SAY = """
import sys
try:
    open_store(sys.argv[1]).get("a")
except StoreError as error:
    print(f"{type(error).__name__}: {error}")
"""
#: Root may do anything.
AS_NOBODY = """
import os
from feature_atlas.errors import StoreError
from feature_atlas.store import open_store
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    """On a real file system of 64 KiB, in a mount namespace of its own."""
    script = (
        "import subprocess, sys\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', sys.argv[1]], check=True)\n"
        "open_store = __import__('feature_atlas.store').store.open_store\n"
        "open_store(sys.argv[1]).put('images/00000.png', b'old')\n"
        + PUT_AND_SAY
        + "print(open_store(sys.argv[1]).get('images/00000.png'))\n"
        "import pathlib; print(sorted(p.name for p in pathlib.Path(sys.argv[1]).rglob('*')))\n"
    )
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces: no small file system to fill")
    sentence, content, names = in_a_child(script, tmp_path, before=namespace).splitlines()
    assert sentence.startswith(f"no space left to write {tmp_path}/images/00000.png: ")
    assert content == "b'old'"
    assert names == "['00000.png', 'images']"


def test_a_file_size_limit_changes_nothing(directory: DirectoryStore) -> None:
    directory.put("images/00000.png", b"old")

    def put_too_much() -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            directory.put("images/00000.png", b"new" * 100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(StoreError, match=r"cannot write .*: File too large"):
        put_too_much()
    assert directory.get("images/00000.png") == b"old"
    assert [path.name for path in (directory.root / "images").iterdir()] == ["00000.png"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="feature-atlas-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def test_no_permission_is_said(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    said = in_a_child(AS_NOBODY + PUT_AND_SAY, open_folder)
    assert said == f"no permission to write {open_folder}/images/00000.png: check the folder's owner and mode\n"


def test_a_forbidden_object_is_not_a_missing_one(open_folder: Path) -> None:
    (open_folder / "a").write_bytes(b"x")
    (open_folder / "a").chmod(0)
    said = in_a_child(AS_NOBODY + GET_AND_SAY, open_folder)
    assert said == f"StoreError: no permission to read {open_folder}/a: check the folder's owner and mode\n"


def test_a_file_in_the_way_is_said(directory: DirectoryStore) -> None:
    directory.put("images", b"a file")
    with pytest.raises(StoreError, match=r"cannot write .*images/00000.png"):
        directory.put("images/00000.png", b"x")


def test_an_interrupted_put_leaves_nothing(directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            directory.put("a/b", b"x")
    assert list((directory.root / "a").iterdir()) == []


def test_what_killed_writers_left_goes_after_a_day(directory: DirectoryStore) -> None:
    directory.put("a/b", b"x")
    old, young = directory.root / "a/.part-1-old", directory.root / "a/.part-2-young"
    old.write_bytes(b"torn")
    young.write_bytes(b"being written")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    DirectoryStore(directory.root).put("a/c", b"y")
    assert young.exists() and not old.exists()
    assert [info.key for info in directory.list()] == ["a/b", "a/c"]


def test_lists_nothing_that_no_key_can_name(directory: DirectoryStore) -> None:
    directory.put("a/b", b"x")
    for stranger in ("a/.DS_Store", "a/my notes.txt", ".git/config", "a/é.png"):
        (directory.root / stranger).parent.mkdir(exist_ok=True)
        (directory.root / stranger).write_bytes(b"")
    assert [info.key for info in directory.list()] == ["a/b"]


def test_a_removed_directory_is_made_again(directory: DirectoryStore) -> None:
    directory.put("a/b", b"x")
    shutil.rmtree(directory.root / "a")
    directory.put("a/b", b"y")
    assert directory.get("a/b") == b"y"


def test_fsync_flushes_file_and_directories_before_the_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    DirectoryStore(tmp_path / "atlas").put("a/b", b"x")
    assert flushed == []
    DirectoryStore(tmp_path / "atlas", fsync=True).put("c/d/e", b"x")
    temporary = next(path for path in flushed if ".part-" in path)
    root = str(tmp_path / "atlas")
    # The new directories' entries, then the file's bytes, then its name.
    assert flushed == [f"{root}/c", root, str(tmp_path), temporary, f"{root}/c/d"]


def test_is_readable_by_those_whom_the_umask_allows(directory: DirectoryStore) -> None:
    before = os.umask(0o022)
    try:
        directory.put("a", b"x")
    finally:
        os.umask(before)
    assert (directory.root / "a").stat().st_mode & 0o777 == 0o644


# -- keys and URLs


@given(st.text(alphabet="ab0._-/\\\0\n é%:~", max_size=12))
def test_no_key_leaves_its_root(key: str) -> None:
    try:
        check_key(key)
    except RequestError:
        return
    root = Path("/srv/atlas")
    path = Path(os.path.normpath(root / key))
    assert path.is_relative_to(root) and path != root
    assert path.relative_to(root).as_posix() == key
    for end in range(len(key) + 1):
        check_prefix(key[:end]) if not key[:end].endswith(("/.", ".")) else None


def test_opens_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = open_store("atlas")
    assert isinstance(here, DirectoryStore) and here.url == str(tmp_path / "atlas")
    assert open_store(tmp_path / "atlas").url == here.url
    assert open_store("~/atlas").url == str(Path.home() / "atlas")
    spaced = tmp_path / "with space é"
    assert open_store(spaced.as_uri()).url == str(spaced)
    assert open_store("memory:x") is open_store("memory:x")
    assert open_store("memory:x") is not open_store("memory:y")
    assert open_store("s3://bucket/a/b/").url == "s3://bucket/a/b"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "no place given"),
        ("  ", "no place given"),
        ("ftp://x/y", "cannot store under 'ftp://x/y'.*s3://bucket/prefix"),
        ("https://name:secret@x/y", "without a name and a password"),
        ("s4://bucket/x", "did you mean s3"),
        ("file://otherhost/x", "names the host 'otherhost'"),
        ("a\0b", "zero byte"),
        ("~nobody-of-that-name/x", "cannot be a folder"),
        ("s3://", "is not s3://bucket/prefix"),
        ("s3://x", "3 or more letters"),
        ("s3:///prefix", "is not s3://bucket/prefix"),
        ("s3://bucket/a//b", "no part that is empty"),
        ("s3://bucket/../other", "starts with a dot"),
        ("s3://bucket/a?versionId=1", "no '\\?'"),
        ("s3://bucket/" + "x" * 401, "at most 400"),
    ],
)
def test_refuses_other_urls_in_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        open_store(url)


def test_does_not_repeat_a_secret_in_a_url() -> None:
    with pytest.raises(RequestError) as caught:
        open_store("s3://AKIAEXAMPLE:verysecret@bucket/x")
    assert "verysecret" not in str(caught.value) and "AKIAEXAMPLE" not in str(caught.value)


def test_fsync_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_ATLAS_FSYNC", "1")
    for url, fsync, expected in ((tmp_path, None, True), (tmp_path, False, False)):
        store = open_store(url, fsync=fsync)
        assert isinstance(store, DirectoryStore) and store.fsync is expected
    monkeypatch.setenv("FEATURE_ATLAS_FSYNC", "0")
    store = open_store(tmp_path)
    assert isinstance(store, DirectoryStore) and not store.fsync


def test_a_root_holds_many_atlases() -> None:
    assert join("out/", "a") == "out/a"
    assert join("s3://bucket", "a") == "s3://bucket/a"
    assert join("memory:x", "a") == "memory:x/a"
