"""A training step of a windowed model by blocks, over the same under the mask of all pairs, in one run.

python -m benchmarks.window
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tptt import MemoryConfig, attach_memory
from tptt.hf import window_attention

WINDOW = 64
LENGTHS = (512, 2048)
REPEATS = 5


def _step(model, tokens: int) -> float:
    """Processor seconds of one forward and backward pass."""
    ids = torch.randint(512, (1, tokens))
    start = time.process_time()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()
    return time.process_time() - start


def main() -> None:
    """Print medians of interleaved repeats, and their ratio."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=max(LENGTHS),
    )
    memory = MemoryConfig(max_self_attn_length=WINDOW, feature_width=64)
    model = attach_memory(LlamaForCausalLM(config), memory).train()
    fits, found = window_attention.Band.fits_blocks, {}
    for tokens in LENGTHS:
        for _ in range(REPEATS + 1):
            for name, rule in (("blocks", fits), ("all pairs", lambda band, tokens: False)):
                window_attention.Band.fits_blocks = rule
                found.setdefault((tokens, name), []).append(_step(model, tokens))
    window_attention.Band.fits_blocks = fits
    for tokens in LENGTHS:
        blocks, pairs = (statistics.median(found[tokens, name][1:]) for name in ("blocks", "all pairs"))
        print(
            f"{tokens} tokens, W = {WINDOW}: all pairs {pairs:.3f} s, blocks {blocks:.3f} s, ratio {pairs / blocks:.2f}"
        )


if __name__ == "__main__":
    main()
