"""Compiles the kernels, when the package is installed, or anew: ``python -m feature_atlas_worker.kernels``.

For each generation of x86-64 a library of its own; the one that suits the processor is loaded.  Without a C compiler
there are none, and PyTorch does the same work.  Imports nothing but the standard library: it runs while the package is
being built.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
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
    """Where the library for a kind of processor lies.

    Not named as Python's own extension modules are, which it is none of.
    """
    return FOLDER / f"{generation}.kernels"


def sources() -> list[Path]:
    """The files to compile."""
    return sorted(FOLDER.glob("*.c"))


def fingerprint() -> str:
    """What the libraries are made of, and how: one made of something else is not used."""
    found = hashlib.sha256()
    for path in [*sources(), *sorted(FOLDER.glob("*.h")), Path(__file__)]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def compiler() -> list[str]:
    """The command of a C compiler: what ``CC`` says, or the system's; empty where there is none."""
    wanted = shlex.split(os.environ.get("CC", "cc"))
    found = shutil.which(wanted[0]) if wanted else None
    return [found, *wanted[1:]] if found else []


def build() -> list[Path]:
    """Compiles a library for every kind of processor.  -> those that came about, at least one.

    Raises:
        RuntimeError: there is no compiler, or it fails; with its reason.
    """
    command = compiler()
    if not command or sys.platform == "win32":
        raise RuntimeError("no C compiler (cc on PATH, or its name in CC): PyTorch does the kernels' work, more slowly")
    made, reasons = [], []
    for generation in generations():
        try:
            made.append(_compiled(command, generation))
        except (RuntimeError, OSError) as error:  # an older compiler does not know the latest processors
            reasons.append(f"{' '.join(command)} fails: {error}")
    if not made:
        raise RuntimeError(reasons[-1])
    return made


def _compiled(command: list[str], generation: str) -> Path:
    x86 = len(generations()) > 1
    options = [f"-march={generation}", *_OPTIONS] if x86 else [o for o in _OPTIONS if not o.startswith("-mprefer")]
    number, name = tempfile.mkstemp(".kernels", ".new-", FOLDER)
    os.close(number)
    part = Path(name)
    try:
        made_of = f'-DFINGERPRINT="{fingerprint()}"'
        done = subprocess.run(
            [*command, *options, made_of, "-o", name, *map(str, sources()), "-lm"], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[:400])
        part.chmod(0o644)
        part.replace(library(generation))  # one step: a process that loads it sees the old one or the new one
    finally:
        part.unlink(missing_ok=True)
    return library(generation)
