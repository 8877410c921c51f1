"""Compiles the kernels, when the package is installed, or anew: ``python -m feature_atlas_worker.kernels``.

For each generation of x86-64 a library of its own; the one that suits the processor is loaded.  Without a C compiler
there are none, and PyTorch does the same work.  Imports nothing but the standard library: it runs while the package is
being built.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
#: What is compiled, without what the processor is.
_OPTIONS = (
    "-std=gnu11", "-O3", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
    "-fPIC", "-shared", "-Wno-psabi",
)  # fmt: skip


def generations() -> tuple[str, ...]:
    """The kinds of processor that a library is made for, the latest first."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return "x86-64-v4", "x86-64-v3", "x86-64"
    return (platform.machine().lower(),)


def library(generation: str) -> Path:
    """Where the library for a kind of processor lies."""
    return FOLDER / f"kernels-{generation}.so"


def sources() -> list[Path]:
    """The files to compile."""
    return sorted(FOLDER.glob("*.c"))


def fingerprint() -> str:
    """What the sources are: a library made of others is not used."""
    found = hashlib.sha256()
    for path in [*sources(), *sorted(FOLDER.glob("*.h"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def compiler() -> str | None:
    """A C compiler: the one in ``CC``, or the system's; None where there is none."""
    wanted = os.environ.get("CC", "cc").split()
    return shutil.which(wanted[0]) if wanted else None


def build() -> list[Path]:
    """Compiles a library for every kind of processor.  -> those that came about.

    Raises:
        RuntimeError: there is no compiler, or it fails; with its reason.
    """
    cc = compiler()
    if cc is None or sys.platform == "win32":
        raise RuntimeError("no C compiler (cc on PATH, or its name in CC): PyTorch does the kernels' work, more slowly")
    x86 = len(generations()) > 1
    made = []
    for generation in generations():
        target = library(generation)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        options = [option for option in _OPTIONS if x86 or not option.startswith("-mprefer")]
        options += [f"-march={generation}"] if x86 else []
        command = [cc, *options, f'-DFINGERPRINT="{fingerprint()}"', "-o", str(part), *map(str, sources()), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"{cc} cannot be run ({error.strerror})") from error
        if done.returncode:
            part.unlink(missing_ok=True)
            raise RuntimeError(f"{cc} fails: {done.stderr.strip()[:400]}")
        part.replace(target)  # one step: a process that loads it sees the old one or the new one
        made.append(target)
    return made
