"""Freed memory is there for the next step, without the system clearing its pages again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from trainer.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def some_tensors():
    for _ in range(8):
        torch.ones(2**24)
some_tensors()
before = faults()
some_tensors()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_large_tensors_take_the_place_of_those_that_were_freed():
    run = [sys.executable, "-c", FAULTS]
    kept, given_back = (
        int(subprocess.run([*run, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    )
    # (all eight tensors, where one at most is new)
    assert given_back > 4 * kept + 10
