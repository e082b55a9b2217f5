"""The memory of a device that a training step takes at its peak, part by part.

Activations are counted, not guessed: the model's own forward pass runs on torch's meta device, and what autograd keeps
is added up. Optimizer states are AdamW's two per parameter, in its dtype.
"""

from __future__ import annotations

import torch

from tptt.convert.widths import MOST, can_allocate_widths
from tptt.hf import memories
from tptt.run.options import RunOptions

from .survey import Survey

_FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: NF4, a byte of scale per 64 weights, and a float32 per 256 scales


def recomputes(options: RunOptions) -> bool:
    """Whether the backward pass recomputes activations; peft has it so under 4 bits in any case."""
    return options.training.gradient_checkpointing or options.quantization == "4bit"


def peak_memory(
    options: RunOptions, survey: Survey, weights: torch.dtype, computed: torch.dtype, length: int
) -> dict[str, int]:
    """{part: bytes} at the peak of a step with rows of ``length`` tokens.

    Args:
        options: of the run.
        survey: of its model.
        weights: dtype of the base's weights.
        computed: dtype of matrix products and activations.
        length: tokens of a row.
    """
    settings, parameters, four_bit = options.training, survey.parameters, options.quantization == "4bit"
    added = 4 * (parameters.lora + parameters.memory)  # both are float32
    trained = added if options.lora_r else parameters.base * weights.itemsize + added
    if four_bit:  # what is not quantised peft turns into float32
        base = int(parameters.linear * _FOUR_BIT) + 4 * (parameters.base - parameters.linear)
    else:
        base = parameters.base * weights.itemsize
    tokens = settings.per_device_train_batch_size * length
    logits = tokens * survey.base.vocab_size
    parts = {
        "base weights": base,
        "LoRA and memory": added,
        "gradients": trained,
        "AdamW states": 2 * trained,
        "activations": _activations(options, survey, computed, length),
        # the logits; in float32 their log softmax, its gradient and that of what went into it
        "logits and loss": logits * (computed.itemsize + 3 * 4),
    }
    if settings.needs_teacher:
        # the base's logits, and for the divergence both log softmaxes
        parts["teacher"] = logits * (computed.itemsize + (2 * 4 if settings.kl_weight else 0))
        if settings.attention_transfer_weight:
            outputs = sum(m.num_heads * m.value_dim for m in memories(survey.model))
            parts["teacher"] += tokens * computed.itemsize * outputs
    return parts


def _activations(options: RunOptions, survey: Survey, computed: torch.dtype, length: int) -> int:
    """Bytes of activations at the peak: of all layers, or where they are recomputed what goes into each, and all of the
    layer at work."""
    rows = options.training.per_device_train_batch_size
    saved = survey.saved(computed, rows, length)
    if not recomputes(options):
        return saved
    layers = survey.base.num_hidden_layers
    stream = 4 if options.quantization == "4bit" else computed.itemsize
    per_token = layers * survey.base.hidden_size * stream + _wider(options, survey)
    return int(rows * length * per_token + saved / layers)


def _wider(options: RunOptions, survey: Survey) -> float:
    """Bytes per token that the layer with the widest memory takes beyond what a mean one takes: features, and for a
    moment the angles of which they are cosines and sines, in float32."""
    if not (options.training.allocate_widths and can_allocate_widths(options.memory)):
        return 0.0
    memory = memories(survey.model)[0]
    return (MOST - 1) * 1.5 * 4 * (memory.num_heads + memory.num_states) * memory.key_features.width
