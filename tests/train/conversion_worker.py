"""Converts the embedded base in each of torchrun's processes, which measure its layers differently, and writes what
came of it.

torchrun --nproc-per-node 2 conversion_worker.py OUT
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from tptt import TpttConfig
from tptt.assets import BASE
from tptt.convert import widths
from tptt.convert.lora import lora_config
from tptt.hf import memories
from tptt.train import TrainingSettings, convert_and_train

RANK, LENGTH, STEPS = int(os.environ.get("RANK", "0")), 64, 4
measured = widths.shares


def reversed_elsewhere(*args):
    found = measured(*args)
    return found if RANK == 0 else found[::-1]


def main(out: str) -> None:
    torch.set_num_threads(1)
    widths.shares = reversed_elsewhere
    lora = lora_config(AutoModelForCausalLM.from_pretrained(BASE))
    config = TpttConfig(base_model_name=str(BASE), lora_config=lora, max_self_attn_length=8, feature_width=256)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    settings = TrainingSettings(tokens=STEPS * 2 * LENGTH * ranks, seq_len=LENGTH, probe_steps=2, stop_at_recall=1.0)
    converted = convert_and_train(config, None, settings, Path(out) / "model")
    found = {
        "widths": [m.key_features.width for m in memories(converted.model)],
        "losses": [x["loss"] for x in converted.history if "loss" in x],
        "trained": sum(p.double().abs().sum().item() for p in converted.model.parameters() if p.requires_grad),
        "saved": (Path(out) / "model" / "config.json").exists(),
    }
    (Path(out) / f"{RANK}.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
