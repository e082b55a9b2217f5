"""Trains a converted model for a few steps, saves it and writes losses and norms; run alone or by torchrun on two
ranks.

    torchrun --nproc-per-node 2 distributed_worker.py BASE OUT KIND    (KIND: trainer, conversion or fsdp2)

"trainer" is the plain Trainer, which takes DDP where there are ranks, "conversion" ours with weights, a teacher and
carried rows; "fsdp2" shards with torch's fully_shard in a
loop of its own, because accelerate wraps in FSDP on accelerators only.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

from tests.families.models import randomize, tokens
from tptt import AdjustMaGWeightCallback, TpttConfig, TpttModel
from tptt.train import ConversionTrainer, TrainingSettings

GLOBAL_BATCH, STEPS = 4, 3
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
ROWS = tokens(GLOBAL_BATCH * STEPS, 20)
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


class Ordered:
    """Rows in their order, so that one process and two see the same batches."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


class OrderedTrainer(Ordered, Trainer):
    pass


class OrderedConversion(Ordered, ConversionTrainer):
    pass


def with_trainer(model, out: str, conversion: bool) -> tuple[str, list[dict]]:
    arguments = TrainingArguments(
        output_dir=f"{out}-trainer",
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=GLOBAL_BATCH // RANKS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
    )
    callback = AdjustMaGWeightCallback(model, 0.1, 0.5, STEPS)
    rows = [{"input_ids": r, "labels": r} for r in ROWS]
    kind, options = OrderedTrainer, {}
    if conversion:
        rows = [row | {"loss_weights": 0.5 + (row["labels"] % 3)} for row in rows]
        kind, options = (
            OrderedConversion,
            {
                "settings": TrainingSettings(
                    kl_weight=0.5,
                    attention_transfer_weight=0.5,
                    long_context_weight=2.0,
                    tbptt_chunks=2,
                    learning_rate=1e-2,
                    memory_learning_rate=3e-2,
                )
            },
        )
    trainer = kind(model=model, args=arguments, train_dataset=rows, callbacks=[callback], **options)
    trainer.train()
    kept = ("loss", "grad_norm", "mag_weight")
    return type(trainer.model_wrapped).__name__, [{k: x[k] for k in kept} for x in trainer.state.log_history[:-1]]


def with_fsdp2(model) -> tuple[str, list[dict]]:
    model.train()
    if RANKS > 1:
        dist.init_process_group("gloo")
        mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
        for layer in model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    share, log = GLOBAL_BATCH // RANKS, []
    for step in range(STEPS):
        ids = ROWS[step * GLOBAL_BATCH :][RANK * share : (RANK + 1) * share]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if RANKS > 1:
            dist.all_reduce(mean)
            norm = norm.full_tensor()
        log.append({"loss": mean.item() / RANKS, "grad_norm": norm.item()})
    return "FSDPModule" if isinstance(model, FSDPModule) else type(model).__name__, log


def main(base: str, out: str, kind: str) -> None:
    torch.set_num_threads(1)
    set_seed(0)
    model = randomize(TpttModel(TpttConfig(base_model_name=base, lora_config=LORA, max_self_attn_length=6)))
    wrapped, log = with_fsdp2(model) if kind == "fsdp2" else with_trainer(model, out, kind == "conversion")
    weights = model.whole_state_dict()
    if RANK == 0:
        model.save_pretrained(f"{out}-model", state_dict=weights)
        Path(out).write_text(json.dumps({"wrapped": wrapped, "log": log}))
    if RANKS > 1:
        dist.barrier()  # a rank that leaves first tears the connection down under the other
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # a library's thread that asks for the interpreter while it ends aborts the process, rarely


if __name__ == "__main__":
    main(*sys.argv[1:])
