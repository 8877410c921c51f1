"""Settings: the environment's variables, their bounds and their descriptions."""

from __future__ import annotations

import pytest

from feature_atlas.errors import RequestError
from feature_atlas.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.load({}) == Settings()
    assert Settings.load({"FEATURE_ATLAS_BATCH": " ", "FEATURE_ATLAS_BROKER": ""}) == Settings()


def test_lists_are_separated_by_commas() -> None:
    loaded = Settings.load({"FEATURE_ATLAS_ALLOWED_STORES": " s3://a/ ,/data,,"})
    assert loaded.allowed_stores == ("s3://a/", "/data")


def test_options_win_over_the_environment_unless_not_given() -> None:
    environ = {"FEATURE_ATLAS_DEVICE": "cuda:1", "FEATURE_ATLAS_BATCH": "8"}
    loaded = Settings.load(environ, device="cpu", batch=None)
    assert (loaded.device, loaded.batch) == ("cpu", 8)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"FEATURE_ATLAS_BATCH": "many"}, r"FEATURE_ATLAS_BATCH='many': input should be a valid integer.*channels per"),
        ({"FEATURE_ATLAS_BATCH": "0"}, r"FEATURE_ATLAS_BATCH='0': input should be greater than or equal to 1"),
        ({"FEATURE_ATLAS_DEVICE": "tpu"}, r"FEATURE_ATLAS_DEVICE='tpu': not a device \(auto, cpu, cuda or cuda:N"),
        ({"FEATURE_ATLAS_FSYNC": "perhaps"}, r"FEATURE_ATLAS_FSYNC='perhaps'.*flush every file"),
    ],
)
def test_an_impossible_value_is_named_with_its_meaning(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        Settings.load(environ)


def test_what_was_given_as_an_option_is_named_as_that() -> None:
    with pytest.raises(RequestError, match=r"^--batch 0: input should be greater than or equal to 1 \(channels per"):
        Settings.load({}, batch=0)
    with pytest.raises(RequestError, match=r"^--device tpu: not a device \(auto, cpu, cuda or cuda:N"):
        Settings.load({"FEATURE_ATLAS_DEVICE": "cpu"}, device="tpu")
    with pytest.raises(RequestError, match=r"^FEATURE_ATLAS_BATCH='0'"):
        Settings.load({"FEATURE_ATLAS_BATCH": "0"}, device="cpu")


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="no setting 'devise'; did you mean device"):
        Settings.load({}, devise="cpu")


def test_a_misspelt_variable_is_pointed_out() -> None:
    (sentence,) = Settings.unknown({"FEATURE_ATLAS_ALOWED_STORES": "x", "FEATURE_ATLAS_BATCH": "1", "HOME": "/"})
    assert "FEATURE_ATLAS_ALOWED_STORES means nothing; did you mean FEATURE_ATLAS_ALLOWED_STORES" in sentence


def test_every_variable_is_described() -> None:
    variables = Settings.variables()
    assert "FEATURE_ATLAS_BROKER" in variables
    assert all(len(text) > 20 for text in variables.values())
