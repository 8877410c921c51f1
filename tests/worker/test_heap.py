"""What a step frees, the next one takes: no page comes anew from the system; and the pages are huge ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_STEPS = """
import resource, torch
from feature_atlas_worker.heap import give_memory_back, keep_freed_memory
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() >> 20
def step():
    parts = [torch.ones(n << 20, dtype=torch.uint8) for n in (5, 12, 7, 12, 9, 12, 11, 12)]
    del parts
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed_memory()
for _ in range(5):
    step()
before, kept = faults(), resident()
for _ in range(20):
    step()
print(faults() - before)
give_memory_back()
print(kept - resident())
"""

_SMALL_PAGES = """
from feature_atlas_worker import heap
heap._system_leaves_it_to_programs = lambda: False
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _SMALL_PAGES + _STEPS], capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    assert faults < 5000, "page faults of twenty steps: a page or two may still be new, 80 MiB are 20,480"
    assert given_back > 70, "MiB, of 80"


_HUGE = """
import re, torch
from feature_atlas_worker.heap import give_memory_back, keep_freed_memory
def on_huge_pages():
    with open("/proc/self/smaps") as maps:
        return sum(int(kb) for kb in re.findall(r"AnonHugePages: +(\\d+) kB", maps.read())) >> 10
def step():
    return [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(8)]
keep_freed_memory()
parts = step()
print(on_huge_pages())
del parts
give_memory_back()
print(on_huge_pages())
"""
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not _SETTING.exists() or "[madvise]" not in _SETTING.read_text(),
    reason="this system leaves huge pages to no program: it gives them to all or to none",
)
def test_what_is_kept_lies_on_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE], capture_output=True, text=True, check=True)
    kept, given_back = map(int, done.stdout.split())
    assert kept >= 112, "MiB, of 128 in use: the ends of the heap may lie on small pages"
    assert given_back <= 32
