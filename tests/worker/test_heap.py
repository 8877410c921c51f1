"""What a step frees, the next one takes: no page comes anew from the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

_STEPS = """
import resource, torch
from feature_atlas_worker.heap import give_memory_back, keep_freed_memory
keep_freed_memory()
def step():
    parts = [torch.ones(n << 20, dtype=torch.uint8) for n in (5, 12, 7, 12, 9, 12, 11, 12)]
    del parts
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
give_memory_back()
before = faults()
step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    assert kept < 5000, "page faults of twenty steps: a page or two may still be new, 80 MiB are 20,480"
    assert after > 10_000, "what was given back comes anew"
