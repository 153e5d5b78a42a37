"""Freed memory is kept: counted in pages that the system had to hand out."""

import platform
import subprocess
import sys

LOOP = """
import resource
import numpy as np
from toolagent.models.allocation import keep_freed_memory

def pages():
    for count in (5, 20):  # the first few grow the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            arrays = [np.ones(300_000) for _ in range(8)]
            del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = pages()
print(keep_freed_memory(), before, pages())
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
