"""Executor: batches, isolation, commit order, back-pressure.  The renderer is injected where it must misbehave."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from feature_atlas import keys, manifest, spec
from feature_atlas.atlas import Atlas
from feature_atlas.errors import DeviceError, RenderError, RequestError, StoreError
from feature_atlas.manifest import Failure, Picture, SideCar
from feature_atlas.plan import LayerPlan, PlanFile
from feature_atlas.spec import ModelRef, Recipe, Unit
from feature_atlas.store import MemoryStore
from feature_atlas_worker import batches
from feature_atlas_worker.batches import BatchSizes
from feature_atlas_worker.commit import patiently
from feature_atlas_worker.devices import device_of
from feature_atlas_worker.execute import Executor, OtherRendererError, Outcome
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.render import Stopped, Target, Visualization, render
from tests import networks

MODEL = ModelRef(name="toy", weights="random:0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
GREY = Picture(width=8, height=8, mean_rgb=(0, 0, 0), hue=0, saturation=0, contrast=0, high_frequency=0, clipped=0)
Trouble = Callable[[Sequence[Target], int], None]


def load(ref: ModelRef, **_: Any) -> VisionModel:
    return VisionModel(torch.nn.Identity(), ref.mean, ref.std, ref.input_size, ref, "0" * 64)


class Renderer:
    """Draws each picture from its seed, and does what ``trouble`` says on the way."""

    def __init__(self, trouble: Trouble = lambda targets, batch: None, **status: str) -> None:
        self.trouble = trouble
        self.status = {int(key.removeprefix("c")): value for key, value in status.items()}
        self.batches: list[tuple[list[int], int]] = []

    def __call__(
        self, model: VisionModel, targets: Sequence[Target], recipe: Recipe, *, seeds: Sequence[int], batch: int,
        stop: Callable[[], bool], on_step: Callable[[int, int], None], **_: Any,
    ) -> list[Visualization]:  # fmt: skip
        assert len(targets) <= batch
        self.batches.append(([target.channel for target in targets], batch))
        self.trouble(targets, batch)
        for step in range(recipe.steps):
            if stop():
                raise Stopped
            on_step(step + 1, recipe.steps)
        found = []
        for target, seed in zip(targets, seeds, strict=True):
            pixels = np.random.default_rng(seed).integers(0, 255, (recipe.images, 8, 8, 3), dtype=np.uint8)
            status: Any = self.status.get(target.channel, "ok")
            initial = pixels[0] if recipe.keep_initial else None
            found.append(Visualization(target, pixels, initial, status, status.strip("ok"), 1, None, 0, None, GREY))
        return found


class Setting:
    """An atlas of one layer in memory and what an executor does to it."""

    def __init__(self, channels: int = 10, store: MemoryStore | None = None, **recipe: Any) -> None:
        layer = LayerPlan(name="conv", kind="conv", index=0, total=64, channels=f"0:{channels}")
        variants = {"channel": Recipe(**{"steps": 2, "renderer": spec.RENDERER, **recipe})}
        file = PlanFile(model=MODEL.digest(), layers=(layer,), variants=variants)
        self.atlas = Atlas.grow(store or MemoryStore(), MODEL, file)
        self.outcomes: list[Outcome] = []

    def run(
        self, renderer: Renderer, *, stop: Callable[[], bool] | None = None, **options: Any
    ) -> dict[str, list[int]]:
        """Renders what is missing; returns status -> channels, as reported."""
        self.outcomes = []
        jobs = [self.atlas.plan.job(unit) for unit in self.atlas.missing()]
        with Executor("cpu", render=renderer, load=load, **{"batch": 4, "patience": 0, **options}) as executor:
            executor.run(jobs, self.atlas.store, self.outcomes.append, stop)
        found: dict[str, list[int]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.status, []).append(outcome.job.channel)
        return {status: sorted(channels) for status, channels in found.items()}

    def failure(self, channel: int) -> Failure:
        return manifest.load(Failure, self.atlas.store.get(keys.error(unit(channel))), "")


def unit(channel: int) -> Unit:
    return Unit("channel", "conv", channel)


def test_every_job_is_committed_with_its_record() -> None:
    setting = Setting()
    renderer = Renderer()
    assert setting.run(renderer, worker="host-1") == {"ok": list(range(10))}
    assert renderer.batches == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4), ([8, 9], 4)]
    assert list(setting.atlas.verify()) == []
    car = manifest.load(SideCar, setting.atlas.store.get(keys.manifest(unit(3))), "")
    assert (car.run.worker, car.run.device, car.run.batch) == ("host-1", "cpu", 4)
    assert car.manifest.software["torch"] == torch.__version__
    assert all(outcome.manifest == setting.atlas.manifest(outcome.job.unit) for outcome in setting.outcomes)


class Recording(MemoryStore):
    def __init__(self) -> None:
        super().__init__("recording")
        self.written: list[str] = []

    def put(self, key: str, data: bytes, **kwargs: Any) -> None:
        super().put(key, data, **kwargs)
        self.written.append(key)


def test_the_picture_is_the_commit_after_all_that_belongs_to_it_but_the_side_car() -> None:
    store = Recording()
    setting = Setting(1, store, images=3, keep_initial=True)
    assert setting.run(Renderer(c0="dead")) == {"dead": [0]}
    assert store.written[2:] == [
        "images/channel/conv/00000-1.png",
        "images/channel/conv/00000-2.png",
        "initial/channel/conv/00000.png",
        "dead/channel/conv/00000",
        "images/channel/conv/00000.png",
        "manifests/channel/conv/00000.json",
    ]
    assert setting.atlas.status()[0].dead == 1


def test_a_batch_is_announced_before_it_is_drawn_and_no_job_before_its_batch() -> None:
    setting, order = Setting(6), list[str]()
    jobs = [setting.atlas.plan.job(unit) for unit in setting.atlas.missing()]
    renderer = Renderer(lambda targets, _: order.append(f"drawn {[target.channel for target in targets]}"))
    with Executor("cpu", render=renderer, load=load, batch=4) as executor:
        executor.run(
            jobs, setting.atlas.store, setting.outcomes.append,
            on_begin=lambda batch: order.append(f"begun {[job.channel for job in batch]}"),
        )  # fmt: skip
    assert order == ["begun [0, 1, 2, 3]", "drawn [0, 1, 2, 3]", "begun [4, 5]", "drawn [4, 5]"]


def test_not_finite_is_a_failure_that_can_be_tried_again() -> None:
    setting = Setting(3)
    assert setting.run(Renderer(c1="nan")) == {"ok": [0, 2], "nan": [1]}
    assert setting.atlas.failed() == {unit(1)}
    assert setting.failure(1).error == "nan"


def test_a_success_removes_the_failure_on_record() -> None:
    setting = Setting(3)
    setting.run(Renderer(c1="nan"))
    jobs = [setting.atlas.plan.job(unit(1))]
    with Executor("cpu", render=Renderer(c1="nan"), load=load) as executor:
        executor.run(jobs, setting.atlas.store, lambda outcome: None)
    assert setting.failure(1).attempts == 2
    with Executor("cpu", render=Renderer(), load=load) as executor:
        executor.run(jobs, setting.atlas.store, lambda outcome: None)
    assert list(setting.atlas.store.list(keys.ERRORS)) == []


@pytest.mark.parametrize("error", [RenderError("cannot"), ZeroDivisionError("by zero"), KeyError("gone")])
def test_a_job_that_raises_is_isolated_and_the_others_finish(error: Exception) -> None:
    def trouble(targets: Sequence[Target], _batch: int) -> None:
        if any(target.channel == 5 for target in targets):
            raise error

    setting = Setting()
    renderer = Renderer(trouble)
    assert setting.run(renderer, worker="host-1") == {"ok": [0, 1, 2, 3, 4, 6, 7, 8, 9], "failed": [5]}
    failure = setting.failure(5)
    assert failure.error == str(error)
    assert type(error).__name__ in failure.traceback and "test_execute.py" in failure.traceback
    assert failure.host == "host-1"
    assert {shape for _, shape in renderer.batches} == {4}, "the parts keep their batch's shape: same pixels"


def test_a_layer_that_cannot_be_rendered_fails_every_job_with_its_sentence_after_two_looks() -> None:
    def trouble(targets: Sequence[Target], _batch: int) -> None:
        raise RequestError("the picture is too small for layer 'conv'")

    setting = Setting(40)
    renderer = Renderer(trouble)
    assert setting.run(renderer) == {"failed": list(range(40))}
    assert {outcome.error for outcome in setting.outcomes} == {"the picture is too small for layer 'conv'"}
    assert len(renderer.batches) <= 4
    assert len(setting.atlas.failed()) == 40


def test_one_refused_channel_does_not_condemn_its_layer() -> None:
    def trouble(targets: Sequence[Target], _batch: int) -> None:
        for target in targets:
            if target.channel in (2, 3):
                raise RequestError(f"channel {target.channel} is out of range")

    assert Setting().run(Renderer(trouble)) == {"ok": [0, 1, 4, 5, 6, 7, 8, 9], "failed": [2, 3]}


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        DeviceError("the GPU failed (CUDA error: CUBLAS_STATUS_ALLOC_FAILED)"),
    ],
)
def test_a_shortage_of_memory_halves_the_batch_and_is_remembered(shortage: Exception) -> None:
    def trouble(targets: Sequence[Target], batch: int) -> None:
        if batch > 3:
            raise shortage

    setting = Setting()
    renderer = Renderer(trouble)
    jobs = [setting.atlas.plan.job(unit) for unit in setting.atlas.missing()]
    with Executor("cpu", batch=8, render=renderer, load=load) as executor:
        executor.run(jobs, setting.atlas.store, setting.outcomes.append)
        assert [shape for _, shape in renderer.batches[:3]] == [8, 4, 2]
        assert {shape for _, shape in renderer.batches[2:]} == {2}
        assert executor.sizes.of(jobs[0]) == 2
    assert len(setting.atlas.done()) == 10


@pytest.mark.parametrize(("seconds", "shapes"), [(0.0, [8, 16, 16]), (0.01, [8, 16, 4, 2, 4, 4, 2])])
def test_the_batch_grows_only_where_a_job_gets_cheaper(
    monkeypatch: pytest.MonkeyPatch, seconds: float, shapes: list[int]
) -> None:
    """Each batch takes 0.2 s, and so much for the square of its size beside."""
    monkeypatch.setattr(batches, "_TELLING", 0.1)
    monkeypatch.setattr(batches, "_guess", lambda *_: 16)
    renderer = Renderer(lambda _targets, batch: time.sleep(0.2 + seconds * batch**2))
    assert set(Setting(40).run(renderer, batch=None)) == {"ok"}
    assert [shape for _, shape in renderer.batches] == shapes


def test_a_job_that_does_not_fit_even_alone_fails() -> None:
    def trouble(targets: Sequence[Target], batch: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    setting = Setting(2)
    assert setting.run(Renderer(trouble)) == {"failed": [0, 1]}
    assert "one job alone needs more memory than there is" in setting.failure(0).error


def test_a_shortage_while_the_layer_is_opened_is_tried_with_less_and_then_counts_as_a_failure() -> None:
    def hungry(ref: ModelRef, **_: Any) -> VisionModel:
        module = torch.nn.Sequential(OrderedDict(stem=torch.nn.Conv2d(3, 4, 3), conv=networks.Hungry()))
        return VisionModel(module, ref.mean, ref.std, ref.input_size, ref, "0" * 64)

    setting, shapes = Setting(2), list[int]()

    def real(*args: Any, batch: int, **how: Any) -> list[Visualization]:
        shapes.append(batch)
        return render(*args, batch=batch, **how)

    jobs = [setting.atlas.plan.job(unit) for unit in setting.atlas.missing()]
    with Executor("cpu", batch=2, patience=0, render=real, load=hungry) as executor:
        executor.run(jobs, setting.atlas.store, setting.outcomes.append)
    assert shapes == [2, 1, 1]
    assert [(outcome.status, outcome.final) for outcome in setting.outcomes] == [("failed", False)] * 2
    assert "one job alone needs more memory than there is" in setting.failure(0).error


def test_a_failing_device_is_nobodys_fault_and_what_was_rendered_is_kept() -> None:
    def trouble(targets: Sequence[Target], _batch: int) -> None:
        if targets[0].channel == 4:
            raise DeviceError("the GPU fell off the bus")

    setting = Setting()
    with pytest.raises(DeviceError, match="fell off"):
        setting.run(Renderer(trouble))
    assert sorted(outcome.job.channel for outcome in setting.outcomes) == [0, 1, 2, 3]
    assert len(setting.atlas.done()) == 4
    assert setting.atlas.failed() == set()


class Failing(MemoryStore):
    """Refuses the first ``times`` writes of each key that holds ``what``."""

    def __init__(self, what: str, times: int, cause: OSError | None = None) -> None:
        super().__init__("failing")
        self.what, self.times, self.cause = what, times, cause
        self.refused: dict[str, int] = {}

    def put(self, key: str, data: bytes, **kwargs: Any) -> None:
        if self.what in key and self.refused.get(key, 0) < self.times:
            self.refused[key] = self.refused.get(key, 0) + 1
            raise StoreError(f"cannot write {key}") from self.cause
        super().put(key, data, **kwargs)


def test_a_store_that_fails_for_a_while_is_tried_again_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_atlas_worker.commit.random.uniform", lambda least, most: 0.001)
    store = Failing("images/", 2)
    setting = Setting(6, store)
    assert setting.run(Renderer(), patience=30) == {"ok": list(range(6))}
    assert set(store.refused.values()) == {2}


def test_a_store_that_goes_on_failing_reaches_the_caller_and_the_rest_is_kept() -> None:
    setting = Setting(4, Failing("00002.png", 99))
    with pytest.raises(StoreError, match=r"00002\.png"):
        setting.run(Renderer())
    assert sorted(outcome.job.channel for outcome in setting.outcomes) == [0, 1, 3]
    assert len(setting.atlas.done()) == 3


def test_no_space_is_said_at_once() -> None:
    attempts = []

    def full() -> None:
        attempts.append(1)
        raise StoreError("no space left") from OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="no space"):
        patiently(full, patience=60)
    assert len(attempts) == 1


def test_a_side_car_that_cannot_be_written_does_not_undo_the_commit() -> None:
    setting = Setting(1, Failing("manifests/", 99))
    assert setting.run(Renderer()) == {"ok": [0]}
    assert setting.atlas.done() == {unit(0)}


class Slow(MemoryStore):
    """Takes 0.1 s for a picture and as long for its side-car; knows in which order things were written."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.written: list[str] = []

    def put(self, key: str, data: bytes, **kwargs: Any) -> None:
        if key.startswith((keys.IMAGES, keys.MANIFESTS)):
            time.sleep(0.1)
        super().put(key, data, **kwargs)
        self.written.append(key)


def at_risk(seconds: float) -> list[int]:
    """How many drawn pictures are not in the store yet whenever a batch of 8 was drawn in so many seconds."""
    store, found = Slow(), list[int]()
    setting = Setting(32, store)

    def trouble(targets: Sequence[Target], _batch: int) -> None:
        time.sleep(seconds)
        committed = sum(key.startswith(keys.IMAGES) for key in store.written)
        found.append(targets[-1].channel + 1 - committed)

    assert setting.run(Renderer(trouble), batch=8) == {"ok": list(range(32))}
    return found


def test_where_the_store_is_slower_a_death_costs_one_batch_at_most() -> None:
    # 24 of them if drawing never waited; a slow moment of this machine may let one or two more in.
    assert all(8 <= count <= 10 for count in at_risk(0))


def test_where_the_store_is_slower_no_picture_waits_behind_side_cars() -> None:
    store, behind = Slow(), list[int]()

    def trouble(targets: Sequence[Target], _batch: int) -> None:
        behind.append(targets[0].channel - sum(key.startswith(keys.MANIFESTS) for key in store.written))

    Setting(32, store).run(Renderer(trouble), batch=8)
    assert all(count <= 2 for count in behind), behind


def test_pictures_are_written_while_the_next_batch_is_drawn() -> None:
    store, begun = Slow(), list[int]()

    def trouble(targets: Sequence[Target], _batch: int) -> None:
        begun.append(targets[0].channel - sum(key.startswith(keys.IMAGES) for key in store.written))
        time.sleep(0.6)  # eight pictures and side-cars over four threads take 0.4 s

    Setting(40, store).run(Renderer(trouble), batch=8)
    # The first two writings are timed; from then on drawing goes on at once.
    assert begun[0] == 0 and all(unwritten > 0 for unwritten in begun[2:]), begun


def test_only_the_very_first_batch_waits_to_see_how_fast_the_store_is() -> None:
    store, begun = Slow(), list[int]()

    def trouble(targets: Sequence[Target], _batch: int) -> None:
        begun.append(targets[0].channel - sum(key.startswith(keys.IMAGES) for key in store.written))
        time.sleep(0.6)

    setting = Setting(32, store)
    jobs = [setting.atlas.plan.job(unit(channel)) for channel in range(32)]
    with Executor("cpu", render=Renderer(trouble), load=load, batch=8) as executor:
        for part in (jobs[:16], jobs[16:]):
            executor.run(part, store, lambda _outcome: None)
    assert begun[:3] == [0, 0, 0] and begun[3] > 0, begun  # a run ends with all that it wrote


def test_pictures_which_commit_go_before_all_side_cars_of_their_batch() -> None:
    store = Slow()
    Setting(16, store).run(Renderer(), batch=16)
    kinds = [key.partition("/")[0] for key in store.written if key.startswith((keys.IMAGES, keys.MANIFESTS))]
    # One thread may be through with its last picture a moment before another.
    assert kinds[:13] == ["images"] * 13 and kinds.count("manifests") == 16


def test_stop_finishes_uploads_and_reports_the_rest_unfinished() -> None:
    stop = threading.Event()

    def trouble(targets: Sequence[Target], _batch: int) -> None:
        if targets[0].channel == 4:
            stop.set()

    setting = Setting()
    found = setting.run(Renderer(trouble), stop=stop.is_set)
    assert found == {"ok": [0, 1, 2, 3], "unfinished": [4, 5, 6, 7, 8, 9]}
    assert len(setting.atlas.done()) == 4
    assert setting.run(Renderer()) == {"ok": [4, 5, 6, 7, 8, 9]}


def test_an_exception_of_the_caller_leaves_what_was_rendered() -> None:
    def trouble(targets: Sequence[Target], _batch: int) -> None:
        if targets[0].channel == 4:
            raise KeyboardInterrupt

    setting = Setting()
    with pytest.raises(KeyboardInterrupt):
        setting.run(Renderer(trouble))
    assert len(setting.atlas.done()) == 4


@pytest.mark.parametrize(("renderer", "advice"), [(6, "update"), (4, "older")])
def test_another_renderers_recipe_is_handed_back_untouched(
    renderer: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "RENDERER", 5)
    setting = Setting(renderer=renderer)
    with pytest.raises(OtherRendererError, match=advice):
        setting.run(Renderer())
    assert setting.outcomes == []
    assert setting.atlas.failed() == set()


def test_the_model_is_loaded_once_and_freed_before_another() -> None:
    loaded: list[str] = []

    def counting(ref: ModelRef, **options: Any) -> VisionModel:
        assert executor._model is None, "two models at once"
        loaded.append(ref.name)
        return load(ref)

    with Executor("cpu", render=Renderer(), load=counting) as executor:
        for ref in (MODEL, MODEL, MODEL.model_copy(update={"name": "other"}), MODEL):
            executor.model(ref, MemoryStore().get)
    assert loaded == ["toy", "other", "toy"]


def test_an_asked_batch_fixes_the_shape_and_an_automatic_one_wastes_little() -> None:
    job = Setting().atlas.plan.job(unit(0))
    asked, automatic = BatchSizes(torch.device("cpu"), 6), BatchSizes(torch.device("cpu"))
    assert [asked.shape(job, count) for count in (1, 5, 6)] == [6, 6, 6]
    assert [automatic.shape(job, count) for count in (1, 2, 3, 5)] == [1, 2, 4, 8]


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "", "tpu:0", "meta"])
def test_a_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"auto, cpu, cuda or cuda:N"):
        device_of(text)


def test_a_gpu_that_is_not_there_is_a_fault_of_the_environment() -> None:
    with pytest.raises(DeviceError, match=r"sees .* GPUs here"):
        device_of("cuda:99")
