"""Networks of timm, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from feature_atlas.errors import MissingExtraError, RequestError, WeightsError, did_you_mean


def create(name: str, pretrained: bool) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """(module, mean, std, input size) of ``timm.create_model(name)``; the last three from timm's data configuration.

    Raises:
        MissingExtraError: timm is not installed.
        RequestError: timm has no such model.
        WeightsError: its weights could not be downloaded.
    """
    try:
        timm: Any = importlib.import_module("timm")
        data: Any = importlib.import_module("timm.data")
    except ImportError:
        raise MissingExtraError(f"timm:{name}", "timm") from None
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise RequestError(f"timm has no model {name!r}{did_you_mean(architecture, timm.list_models())}")
    if tag and name not in timm.list_pretrained():
        raise RequestError(f"timm has no weights {tag!r} of {architecture}{did_you_mean(name, timm.list_pretrained())}")
    try:
        module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # whatever the hub's client raises
        if pretrained:
            raise WeightsError(f"the weights of timm:{name} could not be had ({error})") from error
        raise RequestError(f"timm cannot make {name!r} ({error})") from error
    fed = data.resolve_model_data_config(module)
    return module, tuple(fed["mean"]), tuple(fed["std"]), (fed["input_size"][-2], fed["input_size"][-1])
