"""The benchmarks run and give finite numbers; how fast anything is, no test can say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from feature_atlas.presets import preset
from feature_atlas.spec import Recipe
from feature_atlas_worker import transforms
from feature_atlas_worker.ascent import Ascent
from feature_atlas_worker.devices import computes_half
from feature_atlas_worker.models import VisionModel
from feature_atlas_worker.network import open_network
from tests import networks
from tests.bench import __main__ as bench
from tests.bench import gpu, memory, quality, timeline, waterfall
from tests.bench.rows import Separately

CPU = torch.device("cpu")
TOY = "python:tests.networks:toy:conv3"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads is the process's: put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_table_is_finite_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw.json"
    small = ["--size", "32", "--rounds", "2", "--steps", "2", "--batches", "2", "--json", str(raw)]
    assert bench.main(["--layers", TOY, "--allow", "tests.networks", *small]) == 0
    found = json.loads(raw.read_text())
    rows = found["layers"][TOY]
    assert [row["kind"] for row in rows] == ["lucent"] * 2 + ["ours"] * (14 if computes_half(CPU) else 12) + [
        "bare"
    ] * 2
    for row in rows:
        assert len(row["ms"]) == 2 and all(0 < ms < math.inf for ms in row["ms"])
        assert math.isfinite(row["peak"]) and row["lucent_a"] > 0 and row["lucent_b"] > 0
        assert (row["bare"] is not None) == (row["kind"] == "ours")
    table = capsys.readouterr().out
    assert all(f"| {row['row']} |" in table for row in rows)
    assert found["machine"]["cpu"] in table and found["machine"]["torch"] in table


def test_ratios_are_taken_within_a_round() -> None:
    """The machine halves its speed after the first round: nothing is 1.5 times anything."""
    kinds = [("lucent", 80.0), ("lucent", 40.0), ("ours", 10.0), ("bare", 8.0)]
    records = [
        {"row": str(n), "kind": kind, "batch": 1, "ms": [ms, 2 * ms, 2 * ms], "peak": None}
        for n, (kind, ms) in enumerate(kinds)
    ]
    ours = waterfall.compare(records)[2]
    assert (ours["lucent_a"], ours["lucent_b"], ours["bare"], ours["median"]) == (8.0, 4.0, 1.25, 20.0)
    assert "**20.0** 4.0x (8x), 1.25" in waterfall.markdown({"net:layer": waterfall.compare(records)})


def test_separate_resamplings_show_the_same_view() -> None:
    """The naive row does the same work: on a smooth picture the chain equals the composed map, the border apart."""
    recipe = preset("regularised", {"size": 64, "steps": 4, "blur_random": (0.0, 0.0)})
    axis = torch.linspace(-1, 1, 64)
    smooth = (0.5 + 0.2 * axis[:, None] + 0.1 * axis[None, :]).expand(2, 3, 64, 64)
    with open_network(VisionModel(*networks.toy()), "conv3", recipe, CPU) as network:
        one, many = (kind(network, recipe, [0, 1], [0, 1]) for kind in (Ascent, Separately))
        for step in range(recipe.steps):
            inner = (slice(None), slice(None), slice(20, 44), slice(20, 44))
            composed, chained = (each._view(each._now(step), False, smooth)[inner] for each in (one, many))
            torch.testing.assert_close(chained, composed, atol=2e-3, rtol=0)
            assert (transforms.affine(smooth, one.schedule.theta[step], (64, 64), 0.5) - smooth).abs().max() > 0.01


def test_peak_memory_is_that_of_the_work() -> None:
    size = 64 * 2**20
    found = memory.peak(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    assert found is not None and 0.9 * size < found < 1.5 * size


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--batches", "0"], ["--steps", "-1"]])
def test_a_count_of_nothing_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(wrong)


def test_a_wrong_layer_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--layers", "python:tests.networks:toy:conv9", "--allow", "tests.networks"]) == 2
    assert (
        capsys.readouterr().err
        == "tests.bench: no layer 'conv9' in this network; did you mean conv3, conv2 or conv1?\n"
    )


def test_the_frontier_is_finite_and_drawn(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "VIEWS", 4)
    monkeypatch.setattr(quality, "preset", lambda name, changes=None: preset(name, {"steps": 1, **(changes or {})}))
    few = ["--layers", "features.3", "--channels", "2", "--steps", "1", "3", "--rounds", "1"]
    quality.main(["--weights", str(weights), "--out", str(tmp_path), "--preset", "draft", "--sweep", "steps=2,3", *few])
    (layer,) = json.loads((tmp_path / "quality.json").read_text())
    names = ["Lucent, 1 steps", "Lucent, 3 steps", "draft", "draft steps=2", "draft steps=3"]
    assert [point["name"] for point in layer["points"]] == names
    for found in layer["points"]:
        assert found["seconds"] > 0 and all(
            math.isfinite(found[key]) for key in ("faster", "clean", "held_out", "noise")
        )
    assert layer["points"][1]["clean"] == layer["points"][1]["noise"] == 1.0
    assert (tmp_path / "features.3 draft.png").stat().st_size > 10_000
    assert "| draft steps=2 |" in capsys.readouterr().out


def test_quality_counts_only_where_every_condition_holds() -> None:
    base = {"clean": 1.1, "held_out": 0.9, "noise": 0.3}
    points = [{**base, "faster": 9.0}, {**base, "faster": 20.0, "noise": 0.6}, {**base, "faster": 30.0, "clean": 0.9}]
    assert quality.time_to_quality(points) == {"as_active": 20.0, "in_every_respect": 9.0}
    assert quality.time_to_quality(points[2:]) == {"as_active": None, "in_every_respect": None}


def test_sheets_stand_side_by_side() -> None:
    black, white = ([np.full((8, 8, 3), value, np.uint8)] * 8 for value in (0, 255))
    sheet = quality.side_by_side(black, white)
    assert (
        sheet.size == (2 * 32 + 16, 16) and sheet.getpixel((0, 0)) == (0, 0, 0) and sheet.getpixel((79, 15))[0] == 255
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="no CUDA is what this is about")
def test_without_a_gpu_its_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--gpu"]) == 5
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("tests.bench: no GPU: torch ") and said.err.count("\n") == 1


def test_what_a_gpu_would_be_measured_with_runs_on_a_cpu() -> None:
    model = VisionModel(*networks.toy())
    found = gpu.step_costs(model, "conv3", 2, CPU, 1, Recipe(size=(32, 32), steps=2))
    assert all(0 < value < math.inf for value in found.values())
    whole = gpu.projection(model, 2, CPU, Recipe(size=(32, 32), steps=2), lambda _text: None)
    assert (whole["channels"], whole["layers"], len(whole["sample"])) == (30, 3, 3) and whole["minutes"] > 0


def test_the_convolutions_counted_are_those_up_to_the_layer() -> None:
    first, second = gpu.convolutions(networks.toy()[0], "conv2", torch.zeros(2, 3, 32, 32))
    assert (first.weight, second.weight) == ((8, 3, 5, 5), (12, 8, 3, 3))
    assert (first.x, first.out, second.out) == ((2, 3, 32, 32), (2, 8, 16, 16), (2, 12, 16, 16))
    assert first.operations == 4 * 2 * 8 * 16 * 16 * 3 * 25


def test_the_sample_stands_for_every_channel() -> None:
    sample = gpu.strata(torchvision.models.resnet50(weights=None))
    assert sum(sample.values()) == 26_560
    assert sample["conv1"] == 64 and sample["layer4.2.conv3"] == 3 * 2048 and sample["layer3.0.downsample.0"] == 1024
    assert len(sample) == 1 + 4 * 4


def test_the_timeline_shows_what_lay_beside_rendering(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "timeline.svg"
    timeline.main(["--store", "folder", "--channels", "4", "--batch", "2", "--steps", "2", "--chart", str(drawn)])
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["rendering"] <= told["seconds"] and told["encoding_and_uploading"] > 0
    text = drawn.read_text()
    assert ">rendering</text>" in text and all(text.count(colour) > 1 for colour in timeline.COLOURS.values())
