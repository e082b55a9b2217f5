"""TpttModel: a base model with its memory and LoRA, as a Hugging Face causal language model."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tptt.config import require_decided

from .adapter_methods import AdapterMixin
from .adapters import with_adapters
from .base_model import base_without_weights, load_base
from .calibration import calibrate
from .checkpoint import CheckpointMixin
from .compat import (
    ConvertedModelBase,
    as_peft_model,
    cache_in,
    cache_keyword,
    execution_device,
    held_tensors,
    keep_quantised_form,
    mirror,
    note_attention_implementation,
    register_causal_lm,
)
from .configuration import TpttConfig, named_adapters
from .patch import attach_memory, base_of, set_layer_mag_weights, set_mag_weight
from .slots import let_memories_train

_without_weights: contextvars.ContextVar[bool] = contextvars.ContextVar("tptt_without_weights", default=False)
_TOKENS_TO_CALIBRATE = 128


class TpttModel(CheckpointMixin, AdapterMixin, ConvertedModelBase):
    """A causal language model with a linear memory beside its softmax attention.

    Args:
        config: base, memory and LoRA. With ``lora_config`` the base is frozen, and LoRA and memory train; without it
            everything trains. The model keeps a copy.
        base: a base that was loaded for ``config`` (`tptt.hf.base_model.load_base`), to be converted in place. None:
            the base is loaded here.
        attn_implementation, dtype (or torch_dtype), quantization_config, token, revision, device_map and any other
            keyword: handed to the base's ``from_pretrained``.

    A base that is loaded here is run once, without gradients, on 128 random tokens, because the memory starts from what
    the base's attention does with them (`tptt.calibrate`). A given ``base`` is not run: the caller has text for that.

    Until it is loaded from a checkpoint its ``config.name_or_path`` is the base's, where TRL finds a tokenizer and,
    given no ``ref_model``, its reference model: ``copy.deepcopy(model)`` compares with the converted model instead.

    Raises:
        OSError: the base was not found (the message says how to name it, and the token for gated ones).
        ValueError: the base is no causal language model, a layer's attention has no known layout, or ``layers`` or the
            window is "auto", which needs data.
    """

    config_class = TpttConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True

    def __init__(self, config: TpttConfig, *, base: PreTrainedModel | None = None, **options) -> None:
        config = copy.deepcopy(config)
        require_decided(config.memory_config())  # before a base is loaded
        if base is not None and options:
            raise TypeError(f"{', '.join(options)}: these are for loading a base, and one is given")
        weights_follow, loads = _without_weights.get(), base is None
        if base is None:
            base = base_without_weights(config) if weights_follow else load_base(config, **options)
        keep_quantised_form(base)
        use_cache = config.use_cache
        config.text_config = base.config  # one object, so that later changes of the implementation reach the base
        config.use_cache = use_cache and (loads or config.use_cache)  # a base that was given may say no as well
        config.dtype = base.dtype
        note_attention_implementation(config, base.config)
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.base_vocabulary = base.config.get_text_config().vocab_size
        self.base_weights = frozenset(held_tensors(base))
        self.base_parts = frozenset(name for name, _ in base.named_modules())
        attach_memory(base, config.memory_config())  # before adapters, which may train copies of it
        adapters = named_adapters(config.lora_config)
        self.backbone = with_adapters(base, adapters, config.active_adapters, weights_follow) if adapters else base
        let_memories_train(self.backbone)
        if config.layer_mag_weights is not None:
            set_layer_mag_weights(self.backbone, config.layer_mag_weights)
        mirror(base, self)
        if not weights_follow:
            config.name_or_path = config.name_or_path or config.base_model_name or ""
        self.generation_config = copy.deepcopy(base.generation_config)
        self.post_init()
        self.made_of = frozenset(self.own_shapes())
        if loads and not weights_follow:
            self._calibrate_on_random_tokens()

    def _calibrate_on_random_tokens(self) -> None:
        """Start the memories from what the base does with tokens that are drawn alike in every process."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.base_vocabulary, (2, _TOKENS_TO_CALIBRATE // 2), generator=generator)
        calibrate(self.backbone, ids.to(execution_device(self.inner)))

    def init_weights(self) -> None:
        """Tie what is tied; base, adapters and memory have made their own weights."""
        self.tie_weights()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As transformers', which looks for the base's weights where peft no longer has them."""
        if (peft := as_peft_model(self.backbone)) is None:
            return super().get_expanded_tied_weights_keys(all_submodels)
        return {f"backbone.{k}": f"backbone.{v}" for k, v in peft.all_tied_weights_keys.items()}

    @property
    def inner(self) -> PreTrainedModel:
        """The base model itself, inside peft."""
        return base_of(self.backbone)

    @property
    def base_model(self) -> torch.nn.Module:
        """The decoder body, as TRL expects it."""
        return self.inner.base_model

    @property
    def device(self) -> torch.device:
        """The device that the model computes on, also where weights of the base are kept elsewhere."""
        found = super().device
        return execution_device(self.inner) if found.type == "meta" else found

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def set_input_embeddings(self, value) -> None:
        self.inner.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings) -> None:
        self.inner.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args, **kwargs):
        """As transformers', and the wrapper's own configuration follows; checkpoints keep the resized embeddings."""
        result = super().resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.config.get_text_config().vocab_size
        return result

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        """As the base's forward: input_ids, attention_mask, labels [B, T] -> logits [B, T, vocabulary], loss in nats.

        The cache is taken as ``past_key_values`` (transformers 5.23) and as ``cache`` (5.24) alike.
        """
        cache = cache_in({"past_key_values": past_key_values, "cache": cache}, type(self).__name__)
        if use_cache is None:  # the base would make one in training as well, which has no use for it
            use_cache = self.config.use_cache and not self.training and labels is None
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "logits_to_keep": logits_to_keep if isinstance(logits_to_keep, torch.Tensor) else logits_to_keep or None,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return self.backbone(use_cache=use_cache, **given, **cache_keyword(self.inner, cache), **kwargs)

    def generate(self, *args, **kwargs):
        """As the base's ``generate``, with all that the base has of its own for it (its cache, its inputs, what it
        switches as the text grows), by this model's ``generation_config``."""
        self.inner.generation_config = self.generation_config
        return self.backbone.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """As the base's."""
        return self.inner.prepare_inputs_for_generation(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: requests that share a paged cache cannot each carry a memory.

        Raises:
            ValueError: always.
        """
        raise ValueError("continuous batching keeps a paged cache, which cannot carry a memory: use generate()")

    @classmethod
    @contextmanager
    def without_weights(cls) -> Iterator[None]:
        """A context within which a model is built whose weights come later."""
        token = _without_weights.set(True)
        try:
            yield
        finally:
            _without_weights.reset(token)

    def take_mag_weights(self) -> None:
        """Set every layer's Memory-as-Gate weight to what the configuration says."""
        if self.config.layer_mag_weights is None:
            set_mag_weight(self.backbone, self.config.mag_weight)
        else:
            set_layer_mag_weights(self.backbone, self.config.layer_mag_weights)


AutoModelForCausalLM.register(TpttConfig, TpttModel, exist_ok=True)
register_causal_lm(TpttConfig.model_type, TpttModel.__name__)
