"""Check 7 of INTEGRATION.md: two ranks, DDP and FSDP2, train as one process does."""

import json
from pathlib import Path

import pytest
import torch

from tests.families.models import build
from tests.torchrun import torchrun
from tptt import TpttModel

WORKER = Path(__file__).with_name("distributed_worker.py")


def run(base, out, kind, ranks):
    torchrun(ranks, WORKER, base, out, kind)
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
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert len({x["loss"] for x in got["log"]}) == 3
    saved = [TpttModel.from_pretrained(tmp_path / f"{ranks}.json-model") for ranks in (1, 2)]
    alone, together = (model.own_state_dict() for model in saved)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    configs = [(tmp_path / f"{ranks}.json-model" / "config.json").read_text() for ranks in (1, 2)]
    assert configs[0] == configs[1]
