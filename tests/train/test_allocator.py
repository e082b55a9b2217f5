"""Memory that a training keeps."""

import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from tptt.train.allocator import keep_freed_memory
assert {keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has such a setting")
def test_freed_memory_is_not_asked_for_again():
    given, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT.format(keep=x)], capture_output=True, text=True, check=True
            ).stdout
        )
        for x in ("True", "keep_freed_memory()")
    )
    assert kept < given / 10
