"""Every private or version-dependent name of transformers and peft, in one file; supported are transformers 5.23 and 5.24.

What is not known here is refused when a memory is attached, with what was found. Nothing unknown is taken for "none":
a cache that goes by another name would be a memory that forgets at every step, without an error.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import AttentionInterface, Cache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.modeling_utils import _add_variant
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = [
    "CacheLayerMixin",
    "DynamicIndexedLayer",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "StaticLayer",
    "StaticSlidingWindowLayer",
]


class UnsupportedTransformersError(RuntimeError):
    """The installed transformers or peft does something under a name that is not known here."""


# ---- the cache argument -------------------------------------------------------------------------------------------

CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")
"""Names under which attention modules and models take their cache: transformers 5.24's, 5.23's, and older families'."""
_WITHOUT_CACHE = frozenset(
    (
        "hidden_states",
        "hidden_state",
        "x",
        "hidden",
        "attention_mask",
        "mask",
        "head_mask",
        "position_ids",
        "position_embeddings",
        "position_bias",
        "alibi",
        "output_attentions",
        "rotary_pos_emb",
        "cu_seqlens",
    )
)
"""Parameters of attention modules that hold no cache. Anything else may be one under a new name."""


def cache_argument(module: nn.Module) -> str | None:
    """Under which name the forward of ``module`` takes its cache; None: it takes none under a known name."""
    parameters = inspect.signature(type(_unwrapped(module)).forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def uncompiled(model: nn.Module) -> nn.Module:
    """``model`` without the wrapping of torch.compile."""
    while (inner := model._modules.get("_orig_mod")) is not None:
        model = inner
    return model


def forget_compiled() -> None:
    """Let everything that torch.compile has made in this process be made anew when it is called next: it does not look
    whether modules have got hooks since, or lost them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The base inside a converted model, a peft model or a wrapper of several devices or of torch.compile: they hand the
    cache on."""
    while True:
        model = uncompiled(model)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, PeftModel):
            model = model.get_base_model()
        elif isinstance(model, ConvertedModelBase):
            model = model.inner
        else:
            return model


def unknown_arguments(module: nn.Module) -> list[str]:
    """Parameters of an attention ``module`` without a known cache argument that may be a cache under an unknown name."""
    found = list(inspect.signature(type(module).forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in found if p.kind in named and p.name not in _WITHOUT_CACHE]


def cache_in(arguments: Mapping[str, Any], who: str) -> Any:
    """The cache among the ``arguments`` of a call, by name; None: there is none.

    Raises:
        ValueError: a cache arrives under a name that is not known, or two arrive.
    """
    found = {k: arguments[k] for k in CACHE_ARGUMENTS if arguments.get(k) is not None}
    if strange := [k for k, v in arguments.items() if isinstance(v, Cache) and k not in CACHE_ARGUMENTS]:
        raise ValueError(
            f"{who} got a cache as {', '.join(strange)}; known names are {', '.join(CACHE_ARGUMENTS)}: under another name "
            "a memory would lose its state at every step"
        )
    if len(found) > 1:
        raise ValueError(f"{who} got a cache under two names: {', '.join(found)}")
    return next(iter(found.values()), None)


def cache_keyword(model: nn.Module, cache: Any) -> dict[str, Any]:
    """``cache`` as the keyword argument that the forward of ``model`` takes; nothing for None.

    Raises:
        UnsupportedTransformersError: ``model`` takes no cache under a known name.
    """
    if cache is None:
        return {}
    name = cache_argument(model)
    if name is None:
        raise UnsupportedTransformersError(
            f"{type(model).__name__}.forward takes no cache under a known name ({', '.join(CACHE_ARGUMENTS)})"
        )
    return {name: cache}


def cache_of(outputs: Any) -> Any:
    """The cache that a model's ``outputs`` hold; None: they hold none.

    Raises:
        UnsupportedTransformersError: a cache is there under a name that is not known.
    """
    for name in CACHE_ARGUMENTS:
        if name in outputs:
            return outputs[name]
    if strange := [k for k, v in outputs.items() if isinstance(v, Cache)]:
        raise UnsupportedTransformersError(f"{type(outputs).__name__} holds a cache as {', '.join(strange)}")
    return None


# ---- cache layers -------------------------------------------------------------------------------------------------

_EXAMPLES: dict[type, Callable[[], Any]] = {
    DynamicLayer: lambda: DynamicLayer(),
    DynamicSlidingWindowLayer: lambda: DynamicSlidingWindowLayer(sliding_window=4),
    StaticLayer: lambda: StaticLayer(max_cache_len=4),
    StaticSlidingWindowLayer: lambda: StaticSlidingWindowLayer(max_cache_len=4, sliding_window=4),
}
_METHODS = ("update", "lazy_initialization", "get_mask_sizes", "get_seq_length", "reset", "reorder_cache")
_DYNAMIC = ("batch_repeat_interleave", "batch_select_indices", "crop")
_HELD = ("keys", "values", "is_initialized", "is_sliding")
_NEEDED: dict[type, tuple[str, ...]] = {
    DynamicLayer: (*_METHODS, *_DYNAMIC, *_HELD),
    DynamicSlidingWindowLayer: (*_METHODS, *_DYNAMIC, *_HELD, "sliding_window", "cumulative_length"),
    StaticLayer: (*_METHODS, *_HELD, "max_cache_len", "cumulative_length"),
    StaticSlidingWindowLayer: (*_METHODS, *_HELD, "max_cache_len", "cumulative_length"),
}
"""What each layer has after its first tokens, and what the window, masks and roll-back of a memory go by."""


@functools.lru_cache(maxsize=1)
def check_cache_layers() -> None:
    """Refuse a transformers whose cache layers do not hold what they are known to hold.

    Raises:
        UnsupportedTransformersError: a method or an attribute of a cache layer is missing.
    """
    for kind, make in _EXAMPLES.items():
        try:
            layer, one = make(), torch.zeros(1, 1, 1, 2)
            layer.update(one, one)
        except Exception as error:
            raise UnsupportedTransformersError(f"transformers' {kind.__name__} takes no tokens: {error}") from error
        missing = [name for name in _NEEDED[kind] if not hasattr(layer, name)]
        if missing:
            raise UnsupportedTransformersError(
                f"transformers' {kind.__name__} has no {', '.join(missing)}: this version is not known, and a memory beside "
                "it could be lost without an error. Install a version in the range that tptt names"
            )


def lazy_layers(cache: Any) -> Callable[[], Any] | None:
    """What makes the next layer of a cache whose layers come one by one; None: all are there."""
    return getattr(cache, "layer_class_to_replicate", None)


# ---- generation ---------------------------------------------------------------------------------------------------

_PREPARE_CACHE = "_prepare_cache_for_generation"


def check_cache_preparation(model: nn.Module) -> None:
    """Refuse a ``model`` whose ``generate`` makes its cache where `hook_cache_preparation` does not reach.

    Raises:
        UnsupportedTransformersError: it does.
    """
    if isinstance(model, GenerationMixin) and not hasattr(type(model), _PREPARE_CACHE):
        raise UnsupportedTransformersError(
            f"{type(model).__name__} has no {_PREPARE_CACHE}: its cache would get no states"
        )


def hook_cache_preparation(model: nn.Module, prepared: Callable[[nn.Module, Any, dict], None]) -> None:
    """Let ``model.generate`` call ``prepared(model, generation_config, model_kwargs)`` once it has made its cache."""
    if isinstance(model, GenerationMixin):
        setattr(model, _PREPARE_CACHE, functools.partial(_prepare_cache, model, prepared))


def unhook_cache_preparation(model: nn.Module) -> None:
    """Undo `hook_cache_preparation`."""
    model.__dict__.pop(_PREPARE_CACHE, None)


def _prepare_cache(model, prepared, generation_config, model_kwargs, *args, **kwargs):
    result = getattr(type(model), _PREPARE_CACHE)(model, generation_config, model_kwargs, *args, **kwargs)
    prepared(model, generation_config, model_kwargs)
    return result


class ConvertedModelBase(PreTrainedModel, GenerationMixin):
    """What transformers asks of a model under private names, handed on under names of our own."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"liza"}

    inner: PreTrainedModel

    def cache_prepared(self, generation_config: Any, model_kwargs: dict) -> None:
        """``generate`` has put its cache into ``model_kwargs``."""
        raise NotImplementedError

    @classmethod
    def without_weights(cls):
        """A context within which a model is built whose weights come later."""
        raise NotImplementedError

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        result = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        self.cache_prepared(generation_config, model_kwargs)
        return result

    @classmethod
    def _from_config(cls, config, **kwargs):
        with cls.without_weights():
            return super()._from_config(config, **kwargs)


def model_from_config(cls, config, **kwargs):
    """An instance of ``cls`` without loaded weights."""
    return cls._from_config(config, **kwargs)


def register_causal_lm(model_type: str, class_name: str) -> None:
    """Name a causal language model: Trainer's label smoother shifts the labels of named classes only."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = class_name


# ---- attention implementations ------------------------------------------------------------------------------------

_NO_SOFTMAX = "tptt_memory_only"


def _nothing(module, query, key, value, attention_mask, *args, **kwargs):
    """An attention function that leaves everything to the memory: zeros [B, T, H, V]."""
    batch, heads, tokens, _ = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[-1]), None


AttentionInterface.register(_NO_SOFTMAX, _nothing)


def attention_implementation(config: Any) -> str:
    """What computes the softmax in a model of ``config``: "eager", "sdpa", ..."""
    return getattr(config, "_attn_implementation", None) or "eager"


def chosen_attention_implementation(config: Any) -> str | None:
    """What was chosen to compute the softmax in a model of ``config``; None: nothing was."""
    return getattr(config, "_attn_implementation", None)


def set_attention_implementation(config: Any, name: str) -> None:
    """Let a model of ``config`` compute its softmax by ``name``, before it is built."""
    config._attn_implementation = name


def config_without_softmax(config: Any) -> Any:
    """A copy of ``config`` whose attention function gives zeros.

    Raises:
        UnsupportedTransformersError: configurations of this version keep the choice elsewhere.
    """
    if not hasattr(config, "_attn_implementation_internal"):
        raise UnsupportedTransformersError(f"{type(config).__name__} does not say which attention function is used")
    found = copy.copy(config)
    found._attn_implementation_internal = _NO_SOFTMAX
    return found


def can_replace_attention(body: nn.Module) -> bool:
    """Whether the attention of ``body`` goes through transformers' attention interface."""
    return getattr(body, "_can_set_attn_implementation", lambda: False)()


# ---- rotary embeddings --------------------------------------------------------------------------------------------

ROTARY = "apply_rotary_pos_emb"
"""What modeling files call their rotary embedding of queries and keys together, (q, k, cos, sin, unsqueeze_dim)."""

# ---- peft ---------------------------------------------------------------------------------------------------------


def trained_copy(module: nn.Module) -> nn.Module | None:
    """Of a ``module`` that peft trains copies of (``modules_to_save``) the one at work; None: it has none."""
    if not isinstance(module, ModulesToSaveWrapper):
        return None
    copies, active = module.modules_to_save, module.active_adapters
    if module.disable_adapters or not active or active[0] not in copies:
        return module.original_module
    return copies[active[0]]


def was_merged(model: nn.Module) -> bool:
    """Whether the adapters of the peft ``model`` were folded into its base from outside."""
    return (
        isinstance(model, PeftModel)
        and isinstance(model.base_model, BaseTuner)  # not prompts, which have no layers
        and not any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in model.modules())
    )


def is_lora_parameter(name: str) -> bool:
    """Whether ``name`` is that of a LoRA weight in a peft model."""
    return "lora_" in name


def is_trained_copy(name: str) -> bool:
    """Whether ``name`` is that of a weight in a copy that peft trains (``modules_to_save``)."""
    return ".modules_to_save." in name


def set_tied_names(model: PeftModel, names: dict[str, str]) -> None:
    """Give the peft ``model`` the ``names`` of its tied weights: it would return its base's, which lack its prefix."""
    object.__setattr__(model, "all_tied_weights_keys", names)


# ---- checkpoints --------------------------------------------------------------------------------------------------


def with_variant(file: str, variant: str | None) -> str:
    """``file`` with the name of a ``variant`` of weights in it."""
    return _add_variant(file, variant)


def forget_auto_class(*classes: Any) -> None:
    """Forget that an Auto class loaded ``classes``: saving would copy their source file beside the weights."""
    for kind in classes:
        kind._auto_class = None
