"""TpttModel: a base model with its memory and LoRA, as a Hugging Face causal language model."""

from __future__ import annotations

import contextvars
import copy
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tptt.config import require_decided

from .calibration import calibrate
from .checkpoint import CheckpointMixin
from .compat import (
    ConvertedModelBase,
    cache_in,
    cache_keyword,
    chosen_attention_implementation,
    register_causal_lm,
    set_attention_implementation,
    set_tied_names,
)
from .configuration import TpttConfig, base_error
from .patch import attach_memory, base_of, prepare_generation, weights_loaded

_without_weights: contextvars.ContextVar[bool] = contextvars.ContextVar("tptt_without_weights", default=False)
_adapter_follows: contextvars.ContextVar[bool] = contextvars.ContextVar("tptt_adapter_follows", default=False)
_given_base: contextvars.ContextVar[PreTrainedModel | None] = contextvars.ContextVar("tptt_given_base", default=None)
_TOKENS_TO_CALIBRATE = 128


@contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any = True):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def load_base(config: TpttConfig, **options) -> PreTrainedModel:
    """The base of ``config`` with its weights; ``options`` are those of `TpttModel`.

    Raises:
        OSError: the base was not found (the message says how to name it, and the token for gated ones).
        ValueError: the base is no causal language model.
    """
    return _load_base(config, _noted(config, options))


def _noted(config: TpttConfig, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` for the base's ``from_pretrained``; ``config`` notes what of them belongs to the model."""
    options = dict(options)
    if (dtype := options.pop("torch_dtype", None)) is not None:
        options.setdefault("dtype", dtype)
    if options.get("revision") is not None:
        config.base_model_revision = options["revision"]
    if options.get("attn_implementation") is not None:
        set_attention_implementation(config, options["attn_implementation"])
    return options


def _load_base(config: TpttConfig, options: dict) -> PreTrainedModel:
    if _without_weights.get():
        own_code = getattr(config.text_config, "model_type", None) not in CONFIG_MAPPING  # it runs already, to be here
        attention = chosen_attention_implementation(config.text_config)
        chosen = {} if attention is None else {"attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=own_code, **chosen)
    if config.base_model_name is None:
        raise ValueError("TpttConfig.base_model_name is missing: give the path or hub id of a causal language model")
    options = {k: v for k, v in options.items() if v is not None}
    options.setdefault("revision", config.base_model_revision)
    try:
        return AutoModelForCausalLM.from_pretrained(config.base_model_name, **options)
    except OSError as error:
        raise base_error(config.base_model_name, error) from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise base_error(config.base_model_name, error) from error
        raise


def _with_lora(base: PreTrainedModel, lora: dict) -> PeftModel:
    if getattr(base, "is_quantized", False):
        base = prepare_model_for_kbit_training(base)
    if _without_weights.get():  # transformers ties once the weights are there, by the names that peft gives them here
        for name, source in base.all_tied_weights_keys.items():
            _put(base, name, base.get_parameter(source))
    model = get_peft_model(base, PeftConfig.from_peft_type(**lora))
    set_tied_names(model, _ties(model))
    return model


def _put(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    place, _, own = name.rpartition(".")
    setattr(model.get_submodule(place), own, parameter)


def _ties(model: torch.nn.Module) -> dict[str, str]:
    """Of every weight with several names: the others, each with the first."""
    first: dict[torch.nn.Parameter, str] = {}
    return {n: f for n, p in model.named_parameters(remove_duplicate=False) if (f := first.setdefault(p, n)) != n}


class TpttModel(CheckpointMixin, ConvertedModelBase):
    """A causal language model with a linear memory beside its softmax attention.

    Args:
        config: base, memory and LoRA. With ``lora_config`` the base is frozen and LoRA and memory train; without, all does.
        attn_implementation, dtype (or torch_dtype), quantization_config, token, revision, device_map and any other
            keyword: handed to the base's ``from_pretrained``.

    Until it is loaded from a checkpoint its ``config.name_or_path`` is the base's, where TRL finds a tokenizer and, given
    no ``ref_model``, its reference model: ``copy.deepcopy(model)`` compares with the converted model instead.

    Raises:
        OSError: the base was not found (the message says how to name it, and the token for gated ones).
        ValueError: the base is no causal language model, a layer's attention has no known layout, or ``layers`` is
            "auto", which needs data.
    """

    config_class = TpttConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True

    def __init__(self, config: TpttConfig, **options) -> None:
        options = _noted(config, options)
        require_decided(config.memory_config())  # before a base is loaded
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        fresh = not _without_weights.get()
        given = _given_base.get()
        base = _load_base(config, options) if given is None else given
        config.text_config = base.config  # one object, so that later changes of the implementation reach the base
        self.base_vocabulary = base.config.vocab_size
        self.backbone = base if config.lora_config is None else _with_lora(base, config.lora_config)
        attach_memory(self.backbone, config.memory_config())
        for name in ("quantization_method", "hf_device_map"):  # not is_quantized: Trainer would refuse the wrapper
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        if fresh:
            config.name_or_path = config.name_or_path or config.base_model_name
            self.generation_config = copy.deepcopy(base.generation_config)
            self.post_init()
            if given is None and not _adapter_follows.get():
                ids = torch.randint(base.config.vocab_size, (2, _TOKENS_TO_CALIBRATE // 2),
                                    generator=torch.Generator().manual_seed(0))  # fmt: skip
                calibrate(self.backbone, ids.to(base.device))
        else:
            self.post_init()

    def init_weights(self) -> None:
        """Initialise what is not loaded; weights that came with the base stay as they are."""
        if _without_weights.get():
            super().init_weights()
        else:
            self.tie_weights()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As transformers', which looks for the base's weights where peft no longer has them."""
        if not isinstance(self.backbone, PeftModel):
            return super().get_expanded_tied_weights_keys(all_submodels)
        return {f"backbone.{k}": f"backbone.{v}" for k, v in self.backbone.all_tied_weights_keys.items()}

    @property
    def inner(self) -> PreTrainedModel:
        """The base model itself, inside peft."""
        return base_of(self.backbone)

    @property
    def base_model(self) -> torch.nn.Module:
        """The decoder body, as TRL expects it."""
        return self.inner.base_model

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
        self.config.vocab_size = self.config.text_config.vocab_size
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
        if use_cache is None:  # Trainer switches it off on this config only, and training has no use for a cache
            use_cache = bool(getattr(self.config, "use_cache", True)) and not self.training and labels is None
        return self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **cache_keyword(self.inner, cache),
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        """As transformers', and the 2-D mask goes along: a static cache gets a 4-D one, which hides padding's place."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            ids = inputs.get("input_ids")
            tokens = (inputs["inputs_embeds"] if ids is None else ids).shape[1]
            inputs["memory_mask"] = attention_mask[:, -tokens:].bool()
        return inputs

    def cache_prepared(self, generation_config, model_kwargs) -> None:
        """``generate`` has put its cache into ``model_kwargs``: it gets the memories' states."""
        prepare_generation(self.backbone, generation_config, model_kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: requests that share a paged cache cannot each carry a memory.

        Raises:
            ValueError: always.
        """
        raise ValueError("continuous batching keeps a paged cache, which cannot carry a memory: use generate()")

    @classmethod
    def without_weights(cls):
        """A context within which a model is built whose weights come later."""
        return _set(_without_weights)

    @classmethod
    def _load_full(cls, path, *args, **kwargs):
        with _set(_without_weights):
            model, report = super(CheckpointMixin, cls).from_pretrained(path, *args, output_loading_info=True, **kwargs)
        weights_loaded(model)
        return model, report

    @classmethod
    def _for_adapter(cls, config: TpttConfig, **options) -> TpttModel:
        with _set(_adapter_follows):
            return cls(config, **options)

    @classmethod
    def on_base(cls, config: TpttConfig, base: PreTrainedModel) -> TpttModel:
        """A converted model around ``base``, which `load_base` loaded for ``config``. Its memory is not calibrated yet: that is
        done on the text that it will be trained on (`tptt.calibrate`)."""
        with _set(_given_base, base):
            return cls(config)

    def merge_and_unload(self) -> TpttModel:
        """Fold LoRA into the base's weights; from then on `save_pretrained` writes a self-contained checkpoint."""
        if isinstance(self.backbone, PeftModel):
            for name, source in self.backbone.all_tied_weights_keys.items():
                if any(n.endswith(".base_layer.weight") and ".token_adapter." not in n for n in (name, source)):
                    tied = self.backbone.get_parameter(source)  # LoRA of one of the two would reach the other
                    _put(self.backbone, name, torch.nn.Parameter(tied.detach().clone(), tied.requires_grad))
            self.backbone = self.backbone.merge_and_unload()
            self.config.lora_config = None
            self.post_init()
        self.config.weights_format = "full"
        return self


AutoModelForCausalLM.register(TpttConfig, TpttModel, exist_ok=True)
register_causal_lm(TpttConfig.model_type, TpttModel.__name__)
