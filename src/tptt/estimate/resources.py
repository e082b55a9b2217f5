"""What a run takes: parameters, memory, time, and what its model's cache holds. From the base's configuration alone.

Legend: B rows, T tokens of a row, V vocabulary, H query heads, Hk key/value heads, D head width, K feature width, W window.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedConfig

from tptt.convert.layer_search import LayerChoice, count_layers
from tptt.convert.widths import MOST, can_allocate_widths
from tptt.hf import is_lora_parameter, is_memory_parameter, memories, memory_layers
from tptt.hf.configuration import TpttConfig
from tptt.hf.meta_model import skeleton
from tptt.run.base import base_config, conversion_config, decided
from tptt.run.options import RunOptions
from tptt.train.auto_layers import check_auto, measured_config
from tptt.train.base import row_length

from .cache import cache_bytes
from .hardware import HARDWARE, Hardware
from .meta_model import saved_for_backward, skeleton_kv

CACHED = (8192, 32768, 131072)
"""Tokens after which caches are compared."""
_NARROW = 0.9  # of what is usable: closer than this the estimate is no promise
_MEASURED = 256  # tokens at which saved activations are counted; they grow in proportion to the tokens
_FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: NF4, a byte of scale per 64 weights, and a float32 per 256 scales


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Args:
        base, lora, memory: of the parts; ``trained`` of what trains.
        linear: of the base's linear layers but the head, which 4 bits apply to.
        active: of the base, what one token is multiplied with (no input embedding, of experts those it is sent to).
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


@dataclass(frozen=True)
class Budget:
    """What a run takes on one kind of device.

    Args:
        hardware: the device.
        parameters: of the converted model.
        computed_in: dtype of matrix products and activations.
        length, rows, steps, tokens: of the training.
        parts: name -> bytes at the peak of a step.
        operations: floating-point operations of training per token, those in ``computed_in`` and those in float32 (the
            memory's).
        cache: tokens -> bytes of the cache of one sequence, (base's, converted model's).
        notes: what is wrong with the run on this device, or worth knowing.
    """

    hardware: Hardware
    parameters: Parameters
    computed_in: torch.dtype
    length: int
    rows: int
    steps: int
    tokens: int
    parts: dict[str, int]
    operations: tuple[float, float]
    cache: dict[int, tuple[int, int]]
    notes: tuple[str, ...]

    @cached_property
    def peak(self) -> int:
        """Bytes at the peak of a step."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device's memory holds the run."""
        return self.peak <= self.hardware.usable

    @property
    def narrow(self) -> bool:
        """Whether it fits by less than such an estimate is good for."""
        return self.fits and self.peak > _NARROW * self.hardware.usable

    @property
    def seconds(self) -> float | None:
        """Of the training; None where the device does not compute in that dtype at a speed worth having."""
        peaks = [self.hardware.teraflops.get(name) for name in (_name(self.computed_in), "float32")]
        if None in peaks:
            return None
        per_token = sum(n / (peak * 1e12) for n, peak in zip(self.operations, peaks, strict=True) if peak)
        return self.tokens * per_token / self.hardware.utilisation


class Survey:
    """The converted model of some options on the meta device, and what is counted on it, once for all devices.

    Args:
        options: of the run. Those of the training, ``dtype`` and ``quantization`` do not matter here.

    Raises:
        OSError: there is no configuration of the base.
        ValueError: base and options do not fit each other.
    """

    def __init__(self, options: RunOptions) -> None:
        base = base_config(options)
        self.options = options = decided(options, base)
        if options.attn_implementation is not None:
            base._attn_implementation = options.attn_implementation
        self.own_dtype: torch.dtype = base.dtype or torch.float32
        config, self.choice = counted_config(options, base, self.own_dtype)
        self.model = skeleton(config, self.own_dtype).train()
        self.base = self.model.inner.config
        self.parameters = _count(self.model)
        self._saved: dict[tuple[int, int], float] = {}

    def saved_per_token(self, dtype: torch.dtype, length: int) -> float:
        """Bytes per token that a forward pass in ``dtype`` keeps for the backward pass, in rows of ``length``."""
        if self.base._attn_implementation != "eager":  # it grows with the tokens, but for eager's matrices of weights
            length = min(length, _MEASURED)
        if (dtype.itemsize, length) not in self._saved:
            # autocast computes LoRA in ``dtype`` as well; the memory stays in float32
            for name, p in self.model.named_parameters():
                if not is_memory_parameter(name):
                    p.data = p.data.to(dtype)
            self._saved[dtype.itemsize, length] = saved_for_backward(self.model, 1, length) / length
        return self._saved[dtype.itemsize, length]


def counted_config(
    options: RunOptions, base: PreTrainedConfig, dtype: torch.dtype
) -> tuple[TpttConfig, LayerChoice | None]:
    """The converted model's configuration; of ``layers="auto"`` with as many layers as the budget leaves a memory, and how
    they were counted.

    Raises:
        ValueError: base and options do not fit each other.
    """
    config, settings = conversion_config(options, base), options.training
    if not check_auto(config, settings):
        return config, None
    assert settings.kv_budget is not None
    length, only = row_length(settings, base), config.memory_only_layers
    model, counted_at = skeleton(measured_config(config, length), dtype), settings.kv_length or length
    choice = count_layers(model, skeleton_kv(model, counted_at), settings.kv_budget, counted_at, only)
    config = copy.deepcopy(config)
    config.layers, config.memory_only_layers = choice.memory, choice.memory_only
    return config, choice


def budget(options: RunOptions, hardware: str, survey: Survey | None = None) -> Budget:
    """What the run takes on a device of `HARDWARE`.

    Activations are counted, not guessed: the model's own forward pass runs on torch's meta device, and what autograd
    keeps is added up. Optimizer states are AdamW's two per parameter, in its dtype.

    Args:
        options: of the run.
        hardware: a name.
        survey: of the same model, where there is one already.

    Raises:
        OSError: there is no configuration of the base.
        ValueError: base and options do not fit each other, or the device is unknown.
    """
    if hardware not in HARDWARE:
        raise ValueError(f"unknown hardware {hardware!r}; valid are {', '.join(HARDWARE)}")
    card, settings, survey = HARDWARE[hardware], options.training, survey or Survey(options)
    weights = survey.own_dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    computed = _computed_in(options, weights, card)
    length = row_length(settings, survey.base)
    steps = settings.steps(length)
    return Budget(
        card, survey.parameters, computed, length, settings.per_device_train_batch_size, steps,
        steps * settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.tbptt_chunks * length,
        _peak(options, survey, weights, computed, length), _operations(options, survey, length),
        {n: cache_bytes(survey.model, n, computed.itemsize) for n in CACHED},
        _notes(options, survey.parameters, card, computed),
    )  # fmt: skip


# ---- the model ----------------------------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _computed_in(options: RunOptions, weights: torch.dtype, card: Hardware) -> torch.dtype:
    """bfloat16 by autocast where Trainer does so, else the base's own."""
    if weights == torch.float32 and options.training.bf16 is not False and "bfloat16" in card.teraflops:
        return torch.bfloat16
    return weights


def _notes(options: RunOptions, parameters: Parameters, card: Hardware, computed: torch.dtype) -> tuple[str, ...]:
    notes = []
    if _name(computed) not in card.teraflops:
        notes.append(f"{card.title}: no {_name(computed)}; set dtype to {' or '.join(card.teraflops)}")
    loose = parameters.base - parameters.linear
    if options.quantization == "4bit" and loose > parameters.linear:
        notes.append(
            f"4bit reaches linear layers only: {loose:,} of {parameters.base:,} parameters (experts, embeddings) stay "
            "outside, in float32"
        )
    return tuple(notes)


def _count(model) -> Parameters:
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


# ---- memory -------------------------------------------------------------------------------------------------------


def _peak(options: RunOptions, survey: Survey, weights: torch.dtype, computed: torch.dtype, length: int):
    """{part: bytes} at the peak of a step."""
    settings, parameters, four_bit = options.training, survey.parameters, options.quantization == "4bit"
    added = 4 * (parameters.lora + parameters.memory)  # both are float32
    trained = added if options.lora_r else parameters.base * weights.itemsize + added
    if four_bit:  # what is not quantised peft turns into float32
        base = int(parameters.linear * _FOUR_BIT) + 4 * (parameters.base - parameters.linear)
    else:
        base = parameters.base * weights.itemsize
    tokens = settings.per_device_train_batch_size * length
    saved = survey.saved_per_token(computed, length)
    if recomputes(options):
        layers = survey.base.num_hidden_layers
        stream = 4 if four_bit else computed.itemsize
        saved = layers * survey.base.hidden_size * stream + saved / layers + _wider(options, survey)
    logits = tokens * survey.base.vocab_size
    parts = {
        "base weights": base,
        "LoRA and memory": added,
        "gradients": trained,
        "AdamW states": 2 * trained,
        "activations": int(tokens * saved),
        # the logits; in float32 their log softmax, its gradient and that of what went into it
        "logits and loss": logits * (computed.itemsize + 3 * 4),
    }
    if settings.kl_weight or settings.attention_transfer_weight:
        # the base's logits, and for the divergence both log softmaxes
        parts["teacher"] = logits * (computed.itemsize + (2 * 4 if settings.kl_weight else 0))
        if settings.attention_transfer_weight:
            parts["teacher"] += (
                tokens * computed.itemsize * sum(m.num_heads * m.value_dim for m in memories(survey.model))
            )
    return parts


def _wider(options: RunOptions, survey: Survey) -> float:
    """Bytes per token that the layer with the widest memory takes beyond what a mean one takes: features, and for a moment
    the angles of which they are cosines and sines, in float32."""
    if not (options.training.allocate_widths and can_allocate_widths(options.memory)):
        return 0.0
    memory = memories(survey.model)[0]
    return (MOST - 1) * 1.5 * 4 * (memory.num_heads + memory.num_states) * memory.key_features.width


def recomputes(options: RunOptions) -> bool:
    """Whether the backward pass recomputes activations; peft has it so under 4 bits in any case."""
    return options.training.gradient_checkpointing or options.quantization == "4bit"


# ---- time ---------------------------------------------------------------------------------------------------------


def _operations(options: RunOptions, survey: Survey, length: int) -> tuple[float, float]:
    """Per token of training, in the base and in the memory (float32): 2 per parameter forward; 2 backward, through the base
    as well, where it is frozen; 2 for the gradients of what trains; the forward pass again for recomputed activations; the
    base's own for a teacher, for far weights twice on text."""
    settings, parameters = options.training, survey.parameters
    recurrence = softmax = whole = 0.0
    for layer in memory_layers(survey.model):
        branch = layer.memory
        # read, correct and write the state: 2 each per element; scores and values: 2 per key, head and channel
        recurrence += 6 * branch.num_states * branch.key_features.width * branch.value_dim
        per_key = 2 * layer.geometry.heads * (layer.geometry.head_dim + layer.geometry.value_dim)
        whole += per_key * length / 2
        softmax += per_key * min(length / 2, layer.window or length) if layer.has_softmax else 0
    passes = 3 if recomputes(options) else 2
    memory = passes * (2 * parameters.memory + recurrence) + 2 * parameters.memory + recurrence
    base = passes * (2 * (parameters.active + parameters.lora) + softmax) + softmax
    base += 2 * (parameters.lora if options.lora_r else parameters.active)
    if settings.kl_weight or settings.attention_transfer_weight:
        base += 2 * parameters.active + whole
    if settings.long_context_weight:  # with the whole context and with the window
        base += (1 - settings.recall_share) * (2 * 2 * parameters.active + whole + softmax)
    return base, memory
