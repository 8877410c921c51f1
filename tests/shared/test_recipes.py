"""What can be said of a recipe is told as it is said."""

from __future__ import annotations

import json
import re

import pytest

from feature_atlas.cli import main
from feature_atlas.presets import PRESETS, VARIANTS, variant
from feature_atlas.spec import Recipe
from feature_atlas_producer.plan import parse_settings


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_told_of_a_recipe_makes_it_again(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    settings = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\w+=", line)]
    recipe = variant(name)[1]
    assert {line.partition("=")[0] for line in settings} == set(Recipe.model_fields) - {"renderer"}
    assert variant("again=raw", parse_settings(settings))[1] == recipe
    assert main(["recipes", name, "--json"]) == 0
    assert Recipe.model_validate(json.loads(capsys.readouterr().out)) == recipe


def test_every_field_says_what_it_means_and_what_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "channel"]) == 0
    told = re.findall(r"^(\w+)=.*\n((?: {4}.+\n)+)", capsys.readouterr().out, re.MULTILINE)
    assert len(told) == len(Recipe.model_fields) - 1
    assert all(re.search(r"\w.*\[.+\]$", text.strip(), re.DOTALL) for _, text in told)


def test_all_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*VARIANTS, *PRESETS)) and "sign=-1" in out
    assert main(["recipes", "lucit"]) == 2
    assert "did you mean lucid" in capsys.readouterr().err
