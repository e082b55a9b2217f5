"""Every private or version-dependent name of transformers and peft, in one file; supported are transformers 5.23 and
5.24.

What is not known here is refused when a memory is attached, with what was found. Nothing unknown is taken for "none":
a cache that goes by another name would be a memory that forgets at every step, without an error.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import set_module_tensor_to_device
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, Cache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, _add_variant
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files
from transformers.utils.import_utils import is_gguf_available

__all__ = [
    "CONFIG_NAME",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "TRAINER_STATE_NAME",
    "CacheLayerMixin",
    "DummyLayer",
    "DynamicIndexedLayer",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
    "LinearAttentionAndStaticSlidingWindowAttentionLayer",
    "LinearAttentionLayer",
    "StaticIndexedLayer",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "cached_file",
    "get_checkpoint_shard_files",
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


def uncompiled_name(name: str) -> str:
    """What the weight ``name`` of a model with compiled parts is called without compiling."""
    return name.replace("_orig_mod.", "")


def forget_compiled() -> None:
    """Let everything that torch.compile has made in this process be made anew when it is called next: it does not look
    whether modules have got hooks since, or lost them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The base inside a converted model, a peft model or a wrapper of several devices or of torch.compile: they hand
    the cache on."""
    while True:
        model = uncompiled(model)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, PeftModel):
            model = tuned_model(model)
        elif isinstance(model, ConvertedModelBase):
            model = model.inner
        else:
            return model


def unknown_arguments(module: nn.Module) -> list[str]:
    """Parameters of an attention ``module`` without a known cache argument that may be a cache under an unknown
    name."""
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
            f"{who} got a cache as {', '.join(strange)}; known names are {', '.join(CACHE_ARGUMENTS)}: under another "
            "name a memory would lose its state at every step"
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
                f"transformers' {kind.__name__} has no {', '.join(missing)}: this version is not known, and a memory "
                "beside it could be lost without an error. Install a version in the range that tptt names"
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

    @classmethod
    def without_weights(cls):
        """A context within which a model is built whose weights come later."""
        raise NotImplementedError

    @classmethod
    def _from_config(cls, config, **kwargs):
        with cls.without_weights():
            return super()._from_config(copy.deepcopy(config), **kwargs)  # it notes what it is asked for

    def _refuse_mixin(self, *args, **kwargs):
        """Refused: transformers would freeze the memory, and save adapters alone.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a converted model keeps its adapters in peft's own model: TpttConfig(lora_config=...) gives it the "
            "first, and model.backbone has add_adapter(name, config), load_adapter, set_adapter, delete_adapter and "
            "the like for more"
        )

    add_adapter = load_adapter = set_adapter = delete_adapter = _refuse_mixin
    enable_adapters = disable_adapters = get_adapter_state_dict = enable_peft_hotswap = _refuse_mixin

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel") -> None:
        """Does nothing: checkpoints hold a few lines that import this class, not its source file (`tptt.hf.shim`)."""


def model_from_config(cls, config, **kwargs):
    """An instance of ``cls`` without loaded weights."""
    return cls._from_config(config, **kwargs)


def register_causal_lm(model_type: str, class_name: str) -> None:
    """Name a causal language model: Trainer's label smoother shifts the labels of named classes only."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = class_name


# ---- attention implementations ------------------------------------------------------------------------------------

NO_SOFTMAX = "tptt_memory_only"
"""Name of an attention function that leaves everything to the memory."""


def _nothing(module, query, key, value, attention_mask, *args, **kwargs):
    """An attention function that leaves everything to the memory: zeros [B, T, H, V]."""
    batch, heads, tokens, _ = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[-1]), None


AttentionInterface.register(NO_SOFTMAX, _nothing)


def attention_implementation(config: Any) -> str:
    """What computes the softmax in a model of ``config``: "eager", "sdpa", ..."""
    return getattr(config, "_attn_implementation", None) or "eager"


def chosen_attention_implementation(config: Any) -> str | None:
    """What was chosen to compute the softmax in a model of ``config``; None: nothing was."""
    return getattr(config, "_attn_implementation", None)


def note_attention_implementation(config: Any, base: Any) -> None:
    """Let the ``config`` of a converted model say what the ``base``'s says; the parts of ``base`` stay as they are."""
    config._attn_implementation_internal = base._attn_implementation


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Give transformers' attention interface the attention ``function`` under ``name``."""
    AttentionInterface.register(name, function)


def base_attention(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function ``name`` of transformers for an attention ``module``, whose own file holds the eager one.

    Raises:
        UnsupportedTransformersError: there is none.
    """
    if name in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[name]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if name != "eager" or eager is None:
        raise UnsupportedTransformersError(f"{type(module).__name__} has no attention function {name!r}")
    return eager


def config_with_attention(config: Any, name: str) -> Any:
    """A copy of ``config`` that names the attention function ``name``, which is registered.

    Raises:
        UnsupportedTransformersError: configurations of this version keep the choice elsewhere.
    """
    if not hasattr(config, "_attn_implementation_internal"):
        raise UnsupportedTransformersError(f"{type(config).__name__} does not say which attention function is used")
    found = copy.copy(config)
    found._attn_implementation_internal = name
    return found


def can_replace_attention(body: nn.Module) -> bool:
    """Whether the attention of ``body`` goes through transformers' attention interface."""
    return getattr(body, "_can_set_attn_implementation", lambda: False)()


_TAKE_MASK = ("attention_interface", "_upcast_and_reordered_attn")  # the latter is GPT-2's, for eager attention


@functools.cache
def hands_mask_on(kind: type[nn.Module]) -> bool:
    """Whether the forward of an attention class gives its attention_mask to the attention function and reads it nowhere
    else: something that is no tensor can then stand in its place. Of a class without source the answer is no."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return False
    given = set()
    for call in (x for x in ast.walk(tree) if isinstance(x, ast.Call)):
        if getattr(call.func, "id", getattr(call.func, "attr", None)) in _TAKE_MASK:
            given |= {id(x) for x in (*call.args, *(k.value for k in call.keywords))}
    names = (x for x in ast.walk(tree) if isinstance(x, ast.Name) and x.id == "attention_mask")
    uses = [x for x in names if isinstance(x.ctx, ast.Load)]
    return bool(uses) and all(id(x) in given for x in uses)


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


@dataclass(frozen=True)
class AdapterStatus:
    """What peft says of the adapters of a model.

    Args:
        enabled: whether any is at work.
        active: names of those that are, in peft's order.
        merged: names of those that are folded into the base's weights for the time being.
        irregular: which of the three differ from layer to layer.
    """

    enabled: bool
    active: list[str]
    merged: list[str]
    irregular: list[str]


def adapter_status(model: PeftModel) -> AdapterStatus:
    """Which adapters of ``model`` are at work."""
    found = model.get_model_status()
    irregular = {
        "enabled": found.enabled == "irregular",
        "active": found.active_adapters == "irregular",
        "merged": found.merged_adapters == "irregular",
    }
    active = model.base_model.active_adapters
    merged = [] if irregular["merged"] else list(found.merged_adapters)
    return AdapterStatus(
        found.enabled is not False, list(active), merged, [k for k, wrong in irregular.items() if wrong]
    )


def rescaled_adapters(model: nn.Module) -> list[str]:
    """Names of the LoRA adapters in ``model`` whose product is scaled otherwise than their settings say."""
    found = set()
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer):
            for name, scale in layer.scaling.items():
                rank = layer.r[name] ** 0.5 if layer.use_rslora.get(name, False) else layer.r[name]
                if not math.isclose(scale, layer.lora_alpha[name] / rank, rel_tol=1e-6):
                    found.add(name)
    return sorted(found)


def as_peft_model(model: nn.Module) -> PeftModel | None:
    """``model`` if it is peft's; else None."""
    return model if isinstance(model, PeftModel) else None


def tuned_model(model: PeftModel) -> nn.Module:
    """The model that peft's ``model`` was put around; also when it has lost its last adapter."""
    return model.base_model.model if isinstance(model.base_model, BaseTuner) else model.base_model


def has_adapters(model: nn.Module) -> bool:
    """Whether peft has put adapters into ``model``."""
    return any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in model.modules())


def adapter_states(model: nn.Module) -> list[tuple[str, Any]]:
    """For each module of ``model`` with adapters of peft: its name, and which adapters are active and merged, whether
    all are disabled, and by which factors they are scaled."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            scaling = {k: float(v) for k, v in getattr(module, "scaling", {}).items()}
            merged = list(getattr(module, "merged_adapters", ()))
            state = (list(module.active_adapters), bool(module.disable_adapters), merged, scaling)
            found.append((uncompiled_name(name), state))
    return found


def was_merged(model: nn.Module) -> bool:
    """Whether the adapters of the peft ``model`` were folded into its base, or taken out of it, from outside."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, BaseTuner) and not has_adapters(model)


def is_lora_parameter(name: str) -> bool:
    """Whether ``name`` is that of a LoRA weight in a peft model."""
    return "lora_" in name


_AROUND_BASE = frozenset(("base_layer", "original_module", "token_adapter"))
"""Modules of peft's that hold a module of the base."""


def base_weight_name(name: str) -> str:
    """What the weight ``name`` of a base inside a peft model is called in the base alone."""
    parts = uncompiled_name(name).removeprefix("base_model.model.").split(".")
    return ".".join(p for p in parts if p not in _AROUND_BASE)


def set_tied_names(model: PeftModel, names: dict[str, str]) -> None:
    """Give the peft ``model`` the ``names`` of its tied weights: it would return its base's, which lack its prefix."""
    object.__setattr__(model, "all_tied_weights_keys", names)


# ---- checkpoints --------------------------------------------------------------------------------------------------


def with_variant(file: str, variant: str | None) -> str:
    """``file`` with the name of a ``variant`` of weights in it."""
    return _add_variant(file, variant)


def held_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and saved buffer of ``model`` by each of its names.

    As ``state_dict()`` does, but no layer puts its weights into another form for it (bitsandbytes' do, for good).
    """
    found = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}
    for place, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{place}.{name}" if place else name] = buffer
    return found


def causal_lm_class(config: Any) -> type[PreTrainedModel]:
    """transformers' causal language model of ``config``."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


# ---- quantised weights --------------------------------------------------------------------------------------------

SAVED_QUANTISATION = "bitsandbytes"
"""The way of quantising whose weights are known to come back from a self-contained checkpoint."""


def is_quantised(base: nn.Module) -> bool:
    """Whether the weights of ``base`` are quantised."""
    return bool(getattr(base, "is_quantized", False))


def quantisation(base: nn.Module) -> str | None:
    """By which of transformers' methods the weights of ``base`` are quantised; None: they are not."""
    if not is_quantised(base):
        return None
    method = getattr(base, "quantization_method", None)
    return str(getattr(method, "value", method))


def cannot_save_quantised(base: nn.Module) -> str | None:
    """Why the weights of a quantised ``base`` cannot be saved; None: they can, or it is not quantised."""
    method, quantiser = quantisation(base), getattr(base, "hf_quantizer", None)
    if method is None:
        return None
    if method != SAVED_QUANTISATION:
        return f"weights quantised by {method} are not known to come back from it; known is {SAVED_QUANTISATION}"
    if quantiser is not None and not quantiser.is_serializable():
        return f"weights quantised by {method} in this way cannot be saved"
    return None


# ---- GGUF files ---------------------------------------------------------------------------------------------------


def gguf_available() -> bool:
    """Whether the package ``gguf`` is there in a version that transformers can use."""
    return bool(is_gguf_available())


def gguf_block_sizes() -> dict[int, tuple[int, int]]:
    """Number of a ggml type -> the values of one of its blocks, and their bytes."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


@functools.cache
def gguf_can_dequantise(kind: int) -> bool:
    """Whether the package ``gguf`` can turn values of the ggml type of this number into floats."""
    import numpy
    from gguf import GGMLQuantizationType, dequantize

    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return True
    try:
        dequantize(numpy.zeros((1, gguf_block_sizes()[kind][1]), dtype=numpy.uint8), GGMLQuantizationType(kind))
    except (NotImplementedError, KeyError, ValueError):
        return False
    return True


def forget_gguf(base: PreTrainedModel) -> None:
    """Make a ``base`` that was read from a GGUF file the plain model that it is: its weights are floats, and
    transformers goes on calling it quantised, so that it would not be saved.

    Raises:
        ValueError: its weights are packed still.
    """
    if (quantiser := getattr(base, "hf_quantizer", None)) is None:
        return
    if quantisation(base) != "gguf" or any(not p.is_floating_point() for p in base.parameters()):
        raise ValueError(f"the base's weights are quantised by {quantisation(base)}: a GGUF base is read as floats")
    quantiser.remove_quantization_config(base)


_REPACKS = "support_avx512bf16_for_cpu"


def keep_quantised_form(base: nn.Module) -> None:
    """Let the 4-bit layers of ``base`` keep their weights in the form in which they were loaded.

    On CPUs with AVX-512 and bfloat16, bitsandbytes 0.50 puts them into another form at the first call in eval mode.
    LoRA would be folded into that form wrongly, and ``state_dict()`` would change the weights.
    """
    for module in base.modules():
        if getattr(module, _REPACKS, False):
            setattr(module, _REPACKS, False)


def mirror(base: nn.Module, model: nn.Module) -> None:
    """Let ``model`` say of its devices and quantisation what ``base`` says, for trainers."""
    for name in ("quantization_method", "hf_device_map"):  # not is_quantized: Trainer would refuse the wrapper
        if hasattr(base, name):
            setattr(model, name, getattr(base, name))


# ---- weights that accelerate keeps elsewhere ----------------------------------------------------------------------

_HOOK = "_hf_hook"


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings the own weights of ``module`` for a call of its forward only."""
    return _HOOK in module.__dict__


def execution_device(module: nn.Module) -> torch.device:
    """The device that ``module`` computes on, wherever its weights lie."""
    for part in module.modules():
        for hook in _hooks(part):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    return next(module.parameters()).device


def _hooks(module: nn.Module) -> list[Any]:
    hook = module.__dict__.get(_HOOK)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def keep_on_device(module: nn.Module) -> None:
    """Take ``module`` out of accelerate's offloading: its weights stay on the device that it computes on."""
    for part in module.modules():
        if not is_offloaded(part):
            continue
        device, values = execution_device(part), {}
        for hook in _hooks(part):
            held = getattr(hook, "weights_map", None) or {}
            for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                if tensor.is_meta:
                    values[name] = held[name]
        remove_hook_from_module(part)
        for name, value in values.items():
            set_module_tensor_to_device(part, name, device, value=value)


@contextmanager
def on_execution_device(model: nn.Module) -> Iterator[list[str]]:
    """Within, offloaded weights of ``model`` seem to be on the device that they are computed on, so that what is made
    beside them lands there. They take no memory, and their values are not there. Yields the names of their modules.
    """
    hidden: list[tuple[nn.Module, str, nn.Parameter]] = []
    names = []
    for place, module in model.named_modules():
        away = [(n, p) for n, p in module.named_parameters(recurse=False) if p.is_meta] if is_offloaded(module) else []
        for name, parameter in away:
            stand_in = torch.zeros((), dtype=parameter.dtype, device=execution_device(module)).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(stand_in, requires_grad=parameter.requires_grad)
            hidden.append((module, name, parameter))
        names += [place] if away else []
    try:
        yield names
    finally:
        for module, name, parameter in hidden:
            stood = module._parameters[name]
            module._parameters[name] = parameter.requires_grad_(stood is not None and stood.requires_grad)


def offloaded_value(model: PreTrainedModel, name: str) -> torch.Tensor:
    """The value of the weight ``name`` of ``model``, which accelerate keeps elsewhere."""
    return load_offloaded_parameter(model, name)


# ---- training -----------------------------------------------------------------------------------------------------


def prepared_inputs(trainer: Any, inputs: dict) -> dict:
    """``inputs`` of a training step on the device where ``trainer`` trains."""
    return trainer._prepare_inputs(inputs)
