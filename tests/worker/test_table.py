"""The table is written the same for the same torchvision."""

from pathlib import Path

import pytest

from feature_atlas import networks
from feature_atlas_worker import table


def test_a_table_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models.list_models", lambda **_: ["squeezenet1_1", "alexnet"])
    for name in ("one", "two"):
        table.write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    committed = networks.find("alexnet")
    monkeypatch.setattr(networks, "_TABLE", tmp_path / "one")
    networks._table.cache_clear()
    networks.find.cache_clear()
    try:
        assert networks.names() == ("alexnet", "squeezenet1_1")
        assert networks.find("alexnet") == committed
    finally:
        networks._table.cache_clear()
        networks.find.cache_clear()
