"""What some arms do to a converted model before it is trained. Legend: B batch, T tokens, H heads, D head width."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

from tptt.hf import memories
from tptt.hf.slots import patched_attention, slot_of
from tptt.memory.features import MAPS, LearnedMap


@torch.no_grad()
def random_maps(model: nn.Module) -> None:
    """Draw the feature maps anew: they know nothing of the base, as before `tptt.calibrate`."""
    for memory in memories(model):
        for features in (memory.query_features, memory.key_features):
            if isinstance(features, LearnedMap):
                config, (heads, _, head_dim) = memory.config, features.weight.shape
                new = MAPS[config.feature_map](heads, head_dim, config.feature_width)
                features.weight.copy_(new.weight)


class Convolved(nn.Module):
    """Features of each channel's last four values, weighted by a learned kernel that begins as the last one alone."""

    def __init__(self, features: nn.Module, heads: int, head_dim: int) -> None:
        super().__init__()
        self.features, self.width = features, features.width
        self.kernel = nn.Parameter(torch.eye(4)[0, :, None, None].repeat(1, heads, head_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, H, D]
        past = F.pad(x.float(), (0, 0, 0, 0, 3, 0))
        return self.features(sum(w * past[:, 3 - i : past.shape[1] - i] for i, w in enumerate(self.kernel)))


def short_convolution(model: nn.Module) -> None:
    """Convolve queries and keys of the memory over time; for whole sequences only, because no cache carries it."""
    for memory in memories(model):
        for name in ("query_features", "key_features"):
            features = getattr(memory, name)
            setattr(memory, name, Convolved(features, len(features.weight), features.weight.shape[-1]))
        memory.takes_one_call = False


def full_rank(model: nn.Module) -> None:
    """Train the matrices themselves that LoRA adds to."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.base_layer.weight.requires_grad_(True)


def window_dropout(model: nn.Module) -> None:
    """Draw at every training step how wide the window is: all of it, a half or a quarter."""
    slots = [slot_of(m) for m in patched_attention(model)]
    widths, rng = [s.window for s in slots], random.Random(0)

    def draw(module: nn.Module, args: tuple) -> None:
        share = rng.choice((1, 2, 4)) if module.training else 1
        for slot, width in zip(slots, widths, strict=True):
            slot.window = width // share

    model.register_forward_pre_hook(draw)
