"""TpttModel: a base model with its memory and LoRA, as a Hugging Face causal language model."""

from __future__ import annotations

import contextvars
import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tptt.config import require_decided

from .adapters import SecondAdapters, active_in, with_adapters
from .base_model import base_without_weights, load_base
from .calibration import calibrate
from .checkpoint import CheckpointMixin
from .compat import (
    ConvertedModelBase,
    as_peft_model,
    cache_in,
    cache_keyword,
    cannot_save_quantised,
    execution_device,
    has_adapters,
    held_tensors,
    is_quantised,
    mirror,
    note_attention_implementation,
    register_causal_lm,
)
from .configuration import TpttConfig, named_adapters
from .patch import attach_memory, base_of, set_layer_mag_weights, set_mag_weight
from .slots import let_memories_train

_without_weights: contextvars.ContextVar[bool] = contextvars.ContextVar("tptt_without_weights", default=False)
_TOKENS_TO_CALIBRATE = 128


class TpttModel(CheckpointMixin, ConvertedModelBase):
    """A causal language model with a linear memory beside its softmax attention.

    Args:
        config: base, memory and LoRA. With ``lora_config`` the base is frozen and LoRA and memory train; without, all
            does. The model keeps a copy.
        base: the base, loaded for ``config`` (`tptt.hf.base_model.load_base`) and converted in place; None: it is
            loaded.
        attn_implementation, dtype (or torch_dtype), quantization_config, token, revision, device_map and any other
            keyword: handed to the base's ``from_pretrained``.

    A base that is loaded here is run once, without gradients, on 128 random tokens: its memory starts from what the
        base's
    attention does with them (`tptt.calibrate`). With ``base`` that is left to the caller, who has text for it.

    Until it is loaded from a checkpoint its ``config.name_or_path`` is the base's, where TRL finds a tokenizer and,
    given
    no ``ref_model``, its reference model: ``copy.deepcopy(model)`` compares with the converted model instead.

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
            ids = torch.randint(
                self.base_vocabulary, (2, _TOKENS_TO_CALIBRATE // 2), generator=torch.Generator().manual_seed(0)
            )
            calibrate(self.backbone, ids.to(execution_device(base)))

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

    # ---- adapters ---------------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> SecondAdapters:
        """Name -> configuration of the adapters in this model. peft asks for it before it puts others around the model;
        then those that are here are folded into the base, or the second ones are refused (`SecondAdapters`)."""
        if (around := self.__dict__.get("_configs_around")) is not None:
            return around
        if (peft := as_peft_model(self.backbone)) is None:
            raise AttributeError(f"{type(self).__name__} has no adapters")
        return SecondAdapters(peft.peft_config, self._make_room)

    @peft_config.setter
    def peft_config(self, configs) -> None:
        """peft says which adapters it has put around the model."""
        self.__dict__["_configs_around"] = SecondAdapters(configs, self._make_room)

    @peft_config.deleter
    def peft_config(self) -> None:
        """peft says that it has taken the adapters around the model away."""
        self.__dict__.pop("_configs_around", None)

    def _make_room(self, around: SecondAdapters) -> None:
        """Fold the adapters into the base, so that peft can put others around the model.

        Raises:
            ValueError: that would lose some of them, or what they know.
        """
        peft = as_peft_model(self.backbone)
        if peft is None and not has_adapters(self):  # it tried to, and failed
            return
        if peft is None:
            raise ValueError(
                "peft has put adapters around this converted model already, and would replace them: add_adapter(name, "
                "config) "
                "of that peft model adds one beside them, its merge_and_unload() folds them into the base first"
            )
        idle = sorted(set(peft.peft_config) - set(active_in(peft)))
        if idle or is_quantised(self.inner):
            why = f"adapters {idle} are not at work" if idle else "folding them into quantised weights loses precision"
            raise ValueError(
                "this converted model has adapters, which peft would replace or switch off, and they are not folded "
                "into the "
                f"base first because {why}: model.backbone.add_adapter(name, config) adds one beside them, "
                "model.merge_and_unload() folds those at work into the base all the same"
            )
        warnings.warn(
            f"adapters {sorted(peft.peft_config)} of this converted model were folded into its base, because those "
            f"that peft "
            "puts around it would have replaced them",
            stacklevel=4,
        )
        self.merge_and_unload()
        self.__dict__["_configs_around"] = around

    def active_adapters(self) -> list[str]:
        """Names of the adapters that are at work."""
        peft = as_peft_model(self.backbone)
        return [] if peft is None else active_in(peft)

    def drop_empty_adapters(self) -> None:
        """Take out what peft leaves of adapters when the last one has been deleted."""
        if (peft := as_peft_model(self.backbone)) is not None and not peft.peft_config:
            self._unwrap(peft.unload() if has_adapters(peft) else base_of(peft))

    def merge_and_unload(self) -> TpttModel:
        """Fold the adapters that are at work into the base's weights, and drop the others; from then on
        `save_pretrained` writes a self-contained checkpoint.

        Raises:
            ValueError: the base is quantised in a way whose weights cannot be saved, or the adapters at work differ
                from layer to layer.
        """
        if (peft := as_peft_model(self.backbone)) is not None:
            if reason := cannot_save_quantised(self.inner):
                raise ValueError(f"LoRA cannot be folded into this base: {reason}")
            if not has_adapters(peft):
                self._unwrap(base_of(peft))
            elif not active_in(peft):
                self._unwrap(peft.unload())
            else:
                self._untie(peft)
                self._unwrap(peft.merge_and_unload())
        self.config.weights_format = "full"
        return self

    def _untie(self, peft) -> None:
        """Give a tied weight that LoRA changes on one side alone a copy of its own, or it would reach the other."""
        for name, source in peft.all_tied_weights_keys.items():
            if any(n.endswith(".base_layer.weight") and ".token_adapter." not in n for n in (name, source)):
                tied = peft.get_parameter(source)
                place, _, own = name.rpartition(".")
                copied = torch.nn.Parameter(tied.detach().clone(), tied.requires_grad)
                setattr(peft.get_submodule(place), own, copied)

    def _unwrap(self, base: PreTrainedModel) -> None:
        """Go on with ``base``, which holds no adapters any more."""
        self.backbone = base
        self.config.lora_config = self.config.active_adapters = None
        self.post_init()
        self.made_of = frozenset(self.own_shapes())


AutoModelForCausalLM.register(TpttConfig, TpttModel, exist_ok=True)
register_causal_lm(TpttConfig.model_type, TpttModel.__name__)
