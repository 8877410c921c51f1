"""Atlas: growth by several processes, listings, records and verification."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_atlas import keys, manifest, presets
from feature_atlas.atlas import Atlas
from feature_atlas.errors import IntegrityError, ObjectNotFound, PlanConflictError, RequestError
from feature_atlas.manifest import Manifest, Picture, SideCar
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.spec import ModelRef, Recipe, Unit
from feature_atlas.store import DirectoryStore, MemoryStore, ObjectInfo, Store

MODEL = ModelRef(name="builtin:demo", weights="builtin")
GREY = Picture(
    width=8, height=8, mean_rgb=(0.5, 0.5, 0.5), hue=0, saturation=0, contrast=0, high_frequency=0, clipped=0
)
OTHER = ModelRef(name="resnet50", weights="random:0")


def request(channels: str = "0:4", layer: str = "conv", model: ModelRef = MODEL, **variants: Recipe) -> PlanFile:
    return PlanFile(
        model=model.digest(),
        layers=(LayerPlan(name=layer, kind="conv", index=1, total=64, channels=channels),),
        variants=variants or {"channel": Recipe(steps=4)},
    )


def finish(atlas: Atlas, unit: Unit, *, dead: bool = False) -> Manifest:
    """Commits a unit as a worker does, with pixels that depend on the unit."""
    job = atlas.plan.job(unit)
    random = np.random.default_rng(job.seed)
    pictures = [random.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(job.recipe.images)]
    record = Manifest(
        job=job, job_id=job.id, seed=job.seed, weights_sha256="0" * 64, status="dead" if dead else "ok",
        pixels_sha256=tuple(manifest.pixels_sha256(pixels) for pixels in pictures),
        picture=GREY,
    )  # fmt: skip
    for n in range(1, len(pictures)):
        atlas.store.put(keys.image(unit, n), manifest.encode_png(pictures[n]))
    if dead:
        atlas.store.put(keys.dead(unit), b"")
    png = manifest.encode_png(pictures[0], record)
    atlas.store.put(keys.image(unit), png)
    car = SideCar(manifest=record, sha256=hashlib.sha256(png).hexdigest(), bytes=len(png))
    atlas.store.put(keys.manifest(unit), manifest.dump(car))
    return record


def unit(channel: int = 0, variant: str = "channel") -> Unit:
    return Unit(variant, "conv", channel)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def atlas(store: Store) -> Atlas:
    return Atlas.grow(store, MODEL, request())


class Interposed:
    """A store at which another process acts between two of our calls."""

    def __init__(self, store: Store, moment: Callable[[str, str], None]) -> None:
        self._store, self._moment = store, moment

    def put(self, key: str, data: bytes, **kwargs: object) -> None:
        self._moment("before put", key)
        self._store.put(key, data, **kwargs)  # type: ignore[arg-type]
        self._moment("after put", key)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


# -- open and grow


def test_open_where_nothing_is(store: Store) -> None:
    with pytest.raises(RequestError, match=r"no atlas at memory:.*feature-atlas render"):
        Atlas.open(store)


def test_the_same_request_again_changes_nothing(store: Store) -> None:
    Atlas.grow(store, MODEL, request())
    before = list(store.list())
    Atlas.grow(store, MODEL, request())
    assert list(store.list()) == before
    assert [info.key for info in before] == [keys.ATLAS, keys.plan(request().digest())]


def test_an_atlas_grows_by_layers_channels_and_variants(store: Store) -> None:
    Atlas.grow(store, MODEL, request("0:4"))
    Atlas.grow(store, MODEL, request("2:6"))
    Atlas.grow(store, MODEL, request("0:2", layer="deeper"))
    atlas = Atlas.grow(store, MODEL, request("0:3", negative=Recipe(steps=4, sign=-1)))
    assert len(atlas.plan) == 6 + 2 + 3
    assert Atlas.open(store).plan.digest() == atlas.plan.digest()


@pytest.mark.parametrize("name", keys.TOP)
def test_no_atlas_begins_where_publishing_would_replace_somebodys_file(store: Store, name: str) -> None:
    store.put(name, b"mine")
    with pytest.raises(RequestError, match=f"already holds {re.escape(name)}, which is not an atlas's"):
        Atlas.grow(store, MODEL, request())
    assert [info.key for info in store.list()] == [name]


def test_an_atlas_begins_beside_unrelated_files_and_grows_beside_its_own(store: Store) -> None:
    store.put("README.md.orig", b"mine")
    store.put("src/index.html", b"mine")
    Atlas.grow(store, MODEL, request())
    store.put(keys.CARD, b"the atlas's")
    assert len(Atlas.grow(store, MODEL, request("4:8")).plan.files) == 2


def test_another_model_is_refused_by_name(atlas: Atlas) -> None:
    with pytest.raises(
        PlanConflictError, match=r"builtin:demo \(builtin\), not of resnet50 \(random:0\): choose another"
    ):
        Atlas.grow(atlas.store, OTHER, request(model=OTHER))
    other = MODEL.model_copy(update={"input_size": (64, 64)})
    with pytest.raises(PlanConflictError, match=r"not of builtin:demo \(builtin\) with another input_size: choose"):
        Atlas.grow(atlas.store, other, request(model=other))
    assert len(list(atlas.store.list(keys.PLANS))) == 1


def test_another_recipe_is_refused_with_the_difference(atlas: Atlas) -> None:
    with pytest.raises(PlanConflictError, match=r"'channel'.*\(steps 4 here, 9 asked\)"):
        Atlas.grow(atlas.store, MODEL, request(channel=Recipe(steps=9)))
    assert len(list(atlas.store.list(keys.PLANS))) == 1


@pytest.mark.parametrize(
    ("name", "base"), [("c", "channel"), ("channel", "channel"), ("x", "lucid"), ("neg", "negative")]
)
def test_the_name_that_is_proposed_for_another_recipe_can_be_pasted(store: Store, name: str, base: str) -> None:
    Atlas.grow(store, MODEL, request(**dict([presets.variant(f"{name}={base}")])))
    changed = request(**dict([presets.variant(f"{name}={base}", {"steps": 9, "size": 64})]))
    with pytest.raises(PlanConflictError) as refused:
        Atlas.grow(store, MODEL, changed)
    proposed = str(refused.value).rpartition("--variant ")[2]
    assert proposed == f"{name}2={base}"
    again, recipe = presets.variant(proposed, {"steps": 9, "size": 64})
    assert recipe == changed.variants[name] and Atlas.grow(store, MODEL, request(**{again: recipe}))


@pytest.mark.parametrize("moment", ["before put", "after put"])
def test_contradicting_requests_at_once_never_both_hold(store: Store, moment: str) -> None:
    ours, theirs = request(), request(channel=Recipe(steps=9))
    refused: list[str] = []
    acted: list[str] = []

    def act(when: str, key: str) -> None:
        if when == moment and key.startswith(keys.PLANS) and not acted:
            acted.append(key)
            try:
                Atlas.grow(store, MODEL, theirs)
            except PlanConflictError:
                refused.append("theirs")

    try:
        Atlas.grow(Interposed(store, act), MODEL, ours)  # type: ignore[arg-type]
    except PlanConflictError as error:
        assert "steps 9 here, 4 asked" in str(error)
        refused.append("ours")
    assert refused == ["ours" if moment == "before put" else "theirs"]
    assert len(Atlas.open(store).plan.files) == 1


def test_two_models_at_once_never_share_an_atlas(store: Store) -> None:
    acted: list[str] = []

    def act(when: str, key: str) -> None:
        if when == "before put" and key == keys.ATLAS and not acted:
            acted.append(key)
            with pytest.raises(PlanConflictError, match="began an atlas of another model"):
                Atlas.grow(store, OTHER, request(model=OTHER))

    assert Atlas.grow(Interposed(store, act), MODEL, request()).file.model == MODEL  # type: ignore[arg-type]
    assert acted
    assert len(Atlas.open(store).plan.files) == 1


def _grow(root: str, first: int) -> None:
    for channel in range(first, first + 8):
        Atlas.grow(root, MODEL, request(str(channel)))


def test_processes_that_grow_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_grow, args=(str(tmp_path), first)) for first in (0, 8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert Atlas.open(tmp_path).plan.channels("channel", "conv") == tuple(range(16))


def test_a_contradicting_plan_left_by_a_crash_is_left_out(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    left = request(channel=Recipe(steps=9))
    atlas.store.put(keys.plan(left.digest()), manifest.dump(left))
    with caplog.at_level(logging.WARNING):
        assert Atlas.open(atlas.store).plan.variants["channel"].steps == 4
    assert left.digest() in caplog.text
    assert len(Atlas.grow(atlas.store, MODEL, request("0:6")).plan) == 6


@pytest.mark.parametrize(
    ("key", "data", "sentence"),
    [
        (keys.ATLAS, b'{"schema": 2, "model": {}}', "schema 2; this release reads 1: update feature-atlas"),
        (keys.ATLAS, b"{", "atlas.json of memory: is damaged"),
        (keys.ATLAS, b"", "atlas.json of memory: is damaged"),
        ("plans/0123456789abcdef.json", b'{"schema": 7}', "schema 7"),
        ("plans/0123456789abcdef.json", b"\xff\xfe", "0123456789abcdef.json of memory: is damaged"),
        ("plans/0123456789abcdef.json", manifest.dump(request("7")), "does not match its name"),
    ],
)
def test_damaged_and_newer_files_are_named(atlas: Atlas, key: str, data: bytes, sentence: str) -> None:
    atlas.store.put(key, data)
    with pytest.raises(IntegrityError, match=sentence):
        Atlas.open(atlas.store)


def test_reload_sees_what_others_added(atlas: Atlas) -> None:
    Atlas.grow(atlas.store, MODEL, request("10:20"))
    assert len(atlas.plan) == 4
    atlas.reload()
    assert len(atlas.plan) == 14


# -- listings


def test_status_partitions_the_plan(atlas: Atlas) -> None:
    finish(atlas, unit(0))
    finish(atlas, unit(1), dead=True)
    atlas.store.put(keys.error(unit(1)), b"stale: it was done later")
    atlas.store.put(keys.error(unit(2)), b"{}")
    atlas.store.put(keys.dead(unit(3)), b"")  # killed between the marker and the picture
    (row,) = atlas.status()
    assert row == ("channel", "conv", 4, 2, 1, 1)
    assert row.missing == 1
    assert list(atlas.missing()) == [unit(3)]
    assert atlas.failed() == {unit(2)}


def test_strangers_are_listed_but_not_counted(atlas: Atlas) -> None:
    atlas.store.put("images/channel/conv/00099.png", b"")
    atlas.store.put("images/channel/conv/00001-1.png", b"")
    atlas.store.put("images/channel/conv/notes.txt", b"")
    assert atlas.done() == {unit(99)}
    assert atlas.status()[0].done == 0


def test_listings_narrow_to_a_variant_and_a_layer(store: Store) -> None:
    atlas = Atlas.grow(store, MODEL, request("0", channel=Recipe(steps=4), raw=Recipe(steps=5)))
    for each in list(atlas.missing()):
        finish(atlas, each)
    assert atlas.done("raw") == {unit(0, "raw")}
    assert atlas.done(layer="conv") == {unit(0, "raw"), unit(0)}
    assert atlas.done("raw", "conv") == {unit(0, "raw")}
    assert atlas.done(layer="con") == set()


def test_the_status_of_a_whole_resnet50_needs_listings_only(tmp_path: Path) -> None:
    layers = tuple(
        LayerPlan(name=f"layer{n}", kind="conv", index=n, total=501, channels="0:501") for n in range(53)
    )  # 26,553 units
    atlas = Atlas.grow(tmp_path, MODEL, PlanFile(model=MODEL.digest(), layers=layers, variants={"channel": Recipe()}))
    for group in atlas.plan.groups():
        folder = tmp_path / keys.IMAGES / keys.group(*group)
        folder.mkdir(parents=True)
        for channel in atlas.plan.channels(*group):
            (folder / f"{channel:05d}.png").touch()

    class ListOnly:
        url = "listing"
        calls = 0

        def list(self, prefix: str = "") -> list[ObjectInfo]:
            self.calls += 1
            return list(DirectoryStore(tmp_path).list(prefix))

    counting = ListOnly()
    atlas.store = counting  # type: ignore[assignment]
    start = time.perf_counter()
    assert sum(row.done for row in atlas.status()) == 53 * 501
    print(f"status of {53 * 501} units in a folder: {time.perf_counter() - start:.2f} s")
    assert counting.calls == 3


# -- records


def test_a_missing_side_car_is_rebuilt_from_the_picture(atlas: Atlas) -> None:
    record = finish(atlas, unit())
    before = atlas.store.get(keys.manifest(unit()))
    atlas.store.delete(keys.manifest(unit()))
    assert atlas.manifest(unit()) == record
    assert atlas.store.get(keys.manifest(unit())) == before


@pytest.mark.parametrize("wrong", [b"", b"{}", b'{"schema": 1, "manifest": 3}'])
def test_a_damaged_side_car_is_rebuilt(atlas: Atlas, wrong: bytes) -> None:
    record = finish(atlas, unit())
    atlas.store.put(keys.manifest(unit()), wrong)
    assert atlas.manifest(unit()) == record


def test_a_side_car_of_another_picture_is_noticed_by_its_size(atlas: Atlas) -> None:
    finish(atlas, unit())
    size = len(atlas.store.get(keys.image(unit())))
    finish(atlas, unit(1))
    swapped = manifest.load(SideCar, atlas.store.get(keys.manifest(unit())), "").model_copy(update={"bytes": size + 1})
    atlas.store.put(keys.manifest(unit()), manifest.dump(swapped))
    assert atlas.sidecar(unit(), size).bytes == size


def test_image_and_manifest_of_what_is_not_there(atlas: Atlas) -> None:
    for read in (atlas.manifest, atlas.image):
        with pytest.raises(ObjectNotFound, match=r"no object 'images/channel/conv/00003\.png'"):
            read(unit(3))


def test_image_returns_the_picture(atlas: Atlas) -> None:
    record = finish(atlas, unit())
    assert manifest.pixels_sha256(np.asarray(atlas.image(unit()))) == record.pixels_sha256[0]


# -- verify and repair


def _flip_a_pixel(atlas: Atlas) -> None:
    pixels, record = manifest.decode_png(atlas.store.get(keys.image(unit(1))), "")
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    atlas.store.put(keys.image(unit(1)), manifest.encode_png(changed, record))


def _swap(atlas: Atlas) -> None:
    atlas.store.put(keys.image(unit(1)), atlas.store.get(keys.image(unit(2))))


def _truncate(atlas: Atlas) -> None:
    atlas.store.put(keys.image(unit(1)), atlas.store.get(keys.image(unit(1)))[:-30])


def _strip(atlas: Atlas) -> None:
    atlas.store.put(keys.image(unit(1)), manifest.encode_png(np.asarray(atlas.image(unit(1)))))


BREAKS: dict[str, Callable[[Atlas], None]] = {
    "missing": lambda atlas: atlas.store.delete(keys.image(unit(1))),
    "damaged": _truncate,
    "damaged, a pixel": _flip_a_pixel,
    "foreign": _swap,
    "foreign, no record": _strip,
    "incomplete": lambda atlas: atlas.store.delete(keys.image(unit(1), 1)),
    "damaged, a further image": lambda atlas: atlas.store.put(keys.image(unit(1), 1), b"no picture"),
    "damaged, another further image": lambda atlas: atlas.store.put(
        keys.image(unit(1), 1), atlas.store.get(keys.image(unit(1)))
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_verify_finds_it_and_repair_makes_room_for_a_new_one(store: Store, kind: str) -> None:
    atlas = Atlas.grow(store, MODEL, request(channel=Recipe(steps=4, images=2)))
    for each in list(atlas.missing()):
        finish(atlas, each)
    assert list(atlas.verify()) == []
    BREAKS[kind](atlas)
    problems = list(atlas.verify())
    assert [(problem.unit, problem.kind, problem.harmless) for problem in problems] == [
        (unit(1), kind.split(",")[0], False)
    ]
    assert "images/channel/conv/00001" in problems[0].sentence
    assert atlas.repair(problems) == [unit(1)]
    assert list(atlas.missing()) == [unit(1)]
    finish(atlas, unit(1))
    assert list(atlas.verify()) == []


def test_verify_rebuilds_side_cars_and_markers_on_the_way(atlas: Atlas) -> None:
    finish(atlas, unit(0))
    finish(atlas, unit(1), dead=True)
    finish(atlas, unit(2))
    atlas.store.delete(keys.manifest(unit(0)))
    atlas.store.delete(keys.dead(unit(1)))
    atlas.store.put(keys.dead(unit(2)), b"")
    found = list(atlas.verify())
    assert [(problem.unit, problem.kind) for problem in found] == [
        (unit(0), "record"),
        (unit(1), "marker"),
        (unit(2), "marker"),
    ]
    assert all(problem.harmless for problem in found)
    assert list(atlas.verify()) == []
    assert atlas.repair(found) == []
    assert atlas.done() == {unit(0), unit(1), unit(2)}


def test_verify_of_given_units_reports_those_never_made(atlas: Atlas) -> None:
    finish(atlas, unit(0))
    assert [problem.unit for problem in atlas.verify([unit(0), unit(3)])] == [unit(3)]


def test_verify_names_pictures_in_no_plan(atlas: Atlas) -> None:
    finish(atlas, unit(0))
    atlas.store.put("images/channel/conv/00063.png", atlas.store.get(keys.image(unit(0))))
    (problem,) = atlas.verify()
    assert (problem.unit, problem.kind, problem.harmless) == (None, "unplanned", True)


def test_verify_reads_the_weights_that_the_atlas_carries(store: Store) -> None:
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()
    model = ModelRef(name="resnet50", weights=f"sha256:{digest}", weights_sha256=digest)
    atlas = Atlas.grow(store, model, request(model=model))
    assert [problem.kind for problem in atlas.verify()] == ["weights"]
    store.put(keys.weights(digest), data)
    assert list(atlas.verify()) == []
    store.put(keys.weights(digest), data + b"!")
    assert [problem.kind for problem in atlas.verify()] == ["weights"]
