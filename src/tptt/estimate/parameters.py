"""How many parameters a converted model has, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tptt.hf import is_lora_parameter, is_memory_parameter


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Args:
        base, lora, memory: of the parts.
        trained: of what trains.
        linear: of the base's linear layers but the head, which are what 4 bits apply to.
        active: of the base, what one token is multiplied with: no input embedding, and of experts those it is sent to.
    """

    base: int
    lora: int
    memory: int
    trained: int
    linear: int
    active: int

    @property
    def total(self) -> int:
        return self.base + self.lora + self.memory


def count_parameters(model) -> Parameters:
    """The parameters of the converted ``model``."""
    inner = model.inner
    part = {"base": 0, "lora": 0, "memory": 0}
    for name, p in model.named_parameters():
        part["lora" if is_lora_parameter(name) else "memory" if is_memory_parameter(name) else "base"] += p.numel()
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    linear = sum(
        m.weight.numel()
        for name, m in inner.named_modules()
        if isinstance(m, nn.Linear) and m is not head and not is_lora_parameter(name) and not is_memory_parameter(name)
    )
    active = part["base"] - (0 if head.weight is embedding.weight else embedding.weight.numel())
    if (chosen := getattr(inner.config, "num_experts_per_tok", None)) is not None:
        experts = [p for name, p in inner.named_parameters() if ".experts." in name and p.ndim == 3]
        active -= sum(p.numel() * (p.shape[0] - chosen) // p.shape[0] for p in experts)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(part["base"], part["lora"], part["memory"], trained, linear, active)
