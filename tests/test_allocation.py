"""Freed memory is kept: counted in pages that the system had to hand out. New memory is not filled,
though torch is told to be deterministic."""

import platform
import subprocess
import sys

LOOP = """
import resource
import numpy as np
from toolagent.models.allocation import tune_allocation

def pages():
    for count in (5, 20):  # the first few grow the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            arrays = [np.ones(300_000) for _ in range(8)]
            del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = pages()
print(tune_allocation(), before, pages())
"""
FILLED = """
import torch
from toolagent.models.allocation import tune_allocation

torch.use_deterministic_algorithms(True)
filled = [bool(torch.empty(1000).isnan().all())]
tune_allocation()
old = torch.ones(1000)
del old
print(*filled, bool(torch.empty(1000).isnan().all()))
"""


def test_arrays_of_the_next_step_take_the_memory_of_the_last_one():
    done = subprocess.run(
        [sys.executable, "-c", LOOP], capture_output=True, text=True, timeout=60, check=True
    )
    told, before, after = done.stdout.split()
    if platform.libc_ver()[0] == "glibc":
        assert (told, int(before) > 10_000, int(after) < 100) == ("True", True, True), done.stdout
    else:
        assert told == "False"


def test_new_arrays_are_not_filled():
    done = subprocess.run(
        [sys.executable, "-c", FILLED], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "False"]
