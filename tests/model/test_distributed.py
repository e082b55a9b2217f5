"""Check 7 of INTEGRATION.md: two ranks, DDP and FSDP2, train as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.models import build

WORKER = Path(__file__).with_name("distributed_worker.py")


def run(base, out, kind, ranks):
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    root = WORKER.parents[2]  # this tree's sources, whatever is installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root / "src", root)))}
    done = subprocess.run(
        [*start, str(WORKER), str(base), str(out), kind], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


DDP = "DistributedDataParallel"


@pytest.mark.parametrize("kind, wrapper", [("trainer", DDP), ("conversion", DDP), ("fsdp2", "FSDPModule")])
def test_two_ranks_equal_one_process(tmp_path, kind, wrapper):
    build("llama").save_pretrained(tmp_path / "base")
    want, got = (run(tmp_path / "base", tmp_path / f"{ranks}.json", kind, ranks) for ranks in (1, 2))
    assert (want["wrapped"], got["wrapped"]) == ("TpttModel", wrapper)
    assert len(got["log"]) == len(want["log"]) == 3
    for a, b in zip(got["log"], want["log"], strict=True):
        assert a.get("mag_weight") == b.get("mag_weight")
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert len({x["loss"] for x in got["log"]}) == 3
