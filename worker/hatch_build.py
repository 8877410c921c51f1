"""Builds the kernels into the wheel, where the machine has a C compiler; without one the wheel is pure Python."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface[Any]):
    """Called by hatchling for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; tells hatchling what came about and for which machines."""
        script = Path(self.root, "worker/feature_atlas_worker/kernels/build.py")
        try:
            made: list[Path] = runpy.run_path(str(script))["build"]()
        except (RuntimeError, OSError) as error:
            self.app.display_warning(f"feature-atlas without kernels: {error}")
            return
        if version != "editable":  # there they lie where they are made
            build_data["force_include"].update(
                {str(path): f"feature_atlas_worker/kernels/{path.name}" for path in made}
            )
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # no Python in them
