"""The package's face: what `import feature_atlas` offers, and that it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import feature_atlas


def test_every_name_is_there_and_they_are_sorted() -> None:
    assert feature_atlas.__all__ == sorted(feature_atlas.__all__)
    assert set(feature_atlas.__all__) <= set(dir(feature_atlas))
    for name in feature_atlas.__all__:
        assert getattr(feature_atlas, name) is not None


def test_what_type_checkers_see_is_what_there_is() -> None:
    from feature_atlas.atlas import Atlas
    from feature_atlas.errors import RequestError

    assert feature_atlas.Atlas is Atlas
    assert feature_atlas.RequestError is RequestError


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atlus'"):
        _ = feature_atlas.atlus


@pytest.mark.parametrize("code", ["import feature_atlas", "import feature_atlas.cli; feature_atlas.cli.build_parser()"])
def test_importing_it_loads_nothing_heavy(code: str) -> None:
    heavy = ("numpy", "pydantic", "PIL", "boto3", "botocore", "torch", "celery", "kombu", "redis", "tqdm")
    show = f"{code}; import sys; print(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, timeout=240)
    assert found.stdout.split() == []
