"""A run in each of torchrun's processes, whose last gets a signal after its second step; writes how each one ended.

torchrun --nproc-per-node 2 interrupt_worker.py OUT
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from tptt.run.interrupt import Interrupted
from tptt.run.job import run
from tptt.run.options import RunOptions

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Signal(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        if RANK == RANKS - 1 and state.global_step == 1:
            signal.raise_signal(signal.SIGUSR1)


def main(out: str) -> None:
    torch.set_num_threads(1)
    options = RunOptions(output_dir=f"{out}/run", save_steps=0).changed(
        seq_len=64, tokens=8 * 2 * 64 * RANKS, max_self_attn_length=8, probe_steps=0, feature_width=16
    )
    try:
        run(options, [Signal()])
        ended: dict = {}
    except Interrupted as stop:
        ended = {"code": stop.exit_code, "words": str(stop)}
    (Path(out) / f"{RANK}.json").write_text(json.dumps(ended))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
