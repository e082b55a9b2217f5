"""Which implementation serves a call: selection and dispatch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .chunk import chunk_delta_rule
from .dtypes import state_dtype
from .naive import naive_delta_rule
from .step import step_delta_rule
from .validate import check_arguments, check_chunk_size


@dataclass(frozen=True)
class Spec:
    """What the choice of a backend may depend on."""

    tokens: int
    device: str  # device type
    needs_grad: bool


@dataclass(frozen=True)
class Backend:
    """One implementation. `supports(spec)` returns None, or the reason why it cannot serve the call; asked with None,
    whether it can run on this machine at all."""

    supports: Callable[[Spec | None], str | None]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _always(spec):
    return None


def _one_token(spec):
    return None if spec is None or spec.tokens == 1 else f"it computes exactly one token, got T = {spec.tokens}"


def _without_chunks(function):
    """The same function, taking and ignoring chunk_size: its result does not depend on it."""
    return lambda *tensors, chunk_size, **options: function(*tensors, **options)


DELTA_RULE = {
    "naive": Backend(_always, _without_chunks(naive_delta_rule)),
    "chunk": Backend(_always, chunk_delta_rule),
    "step": Backend(_one_token, _without_chunks(step_delta_rule)),
}
NAIVE_UP_TO = 3
"""Tokens up to which the loop is faster than one chunk, forward and backward (tried by hand)."""


def available_backends():
    """{name: None if the backend can run on this machine, else the reason why not}, for every known backend."""
    return {name: backend.supports(None) for name, backend in DELTA_RULE.items()}


def delta_rule(
    q,
    k,
    v,
    beta,
    g=None,
    *,
    scale=1.0,
    initial_state=None,
    output_final_state=False,
    backend="auto",
    chunk_size=None,
):
    """Delta rule, gated when g is given (arXiv 2406.06484 eq. 2; arXiv 2412.06464 eq. 10).

    For every token t, with S the state of the key/value head:
        S = exp(g_t) S;  S += beta_t k_t (v_t - S^T k_t)^T;  o_t = scale * S^T q_t

    Args:
        q: queries [B, T, G*H, K], unit L2 norm by convention. Query head h reads the state of head h // G.
        k: keys [B, T, H, K], unit L2 norm (longer keys make the recurrence itself unstable).
        v: values [B, T, H, V].
        beta: write strength [B, T, H], in [0, 1], or up to 2 with negative eigenvalues. 0 writes nothing.
        g: natural log of the decay [B, T, H], <= 0; None or 0 is no decay.
        scale: factor on the output.
        initial_state: [B, H, K, V]; None is zero. Never modified.
        output_final_state: return the state after the last token as well.
        backend: "auto" or a name from `available_backends()`.
        chunk_size: tokens per chunk of backend "chunk", a power of two; None takes the fastest measured. It changes
            speed and rounding only; backends without chunks ignore it.

    Inputs are floating point of any precision, also mixed; all arithmetic is done in the state's precision, whatever
    autocast says. T = 0 gives an empty output and leaves the state as it was.

    Returns:
        o [B, T, G*H, V] in v's dtype, and the final state [B, H, K, V] or None. The state is float32; float64 when q,
        k or v is float64.

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices do not fit together, the backend is unknown or cannot serve this call, or
            chunk_size is no power of two.
        RuntimeError: second derivatives are asked of "chunk" (use "naive").
    """
    check_arguments(q, k, v, beta, g, initial_state)
    check_chunk_size(chunk_size)
    tensors = (q, k, v, beta, g, initial_state)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    run = _select(backend, Spec(k.shape[1], k.device.type, needs_grad))
    if not k.shape[1]:
        o, state = _nothing(q, k, v, initial_state)
    else:
        with torch.autocast(k.device.type, enabled=False):
            o, state = run(q, k, v, beta, g, scale=scale, initial_state=initial_state, chunk_size=chunk_size)
    return o, state if output_final_state else None


def delta_rule_step(q, k, v, beta, g=None, *, state, scale=1.0, inplace=False):
    """One token of `delta_rule`, for decoding.

    Args: as in `delta_rule` with T = 1; state [B, H, K, V] before the token; inplace: overwrite `state`, which must
        then have the state's dtype (float32; float64 when q, k or v is float64), and nothing may need a gradient.
    Returns: o [B, 1, G*H, V] in v's dtype, and the state after the token (`state` itself when inplace).
    Raises: TypeError, ValueError as `delta_rule`; ValueError when T is not 1 or inplace cannot be served.
    """
    check_arguments(q, k, v, beta, g, state)
    if k.shape[1] != 1:
        raise ValueError(f"delta_rule_step takes exactly one token, got T = {k.shape[1]}")
    if inplace:
        _check_inplace(q, k, v, beta, g, state)
    with torch.autocast(k.device.type, enabled=False):
        return step_delta_rule(q, k, v, beta, g, scale=scale, initial_state=state, inplace=inplace)


def _check_inplace(q, k, v, beta, g, state):
    dtype = state_dtype(q, k, v)
    if state is None or state.dtype != dtype:
        raise ValueError(f"inplace needs a state of {dtype}, got {None if state is None else state.dtype}")
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, beta, g, state)):
        raise ValueError("inplace overwrites what a gradient needs: use inplace=False or torch.no_grad()")


def _select(name, spec):
    """The function of backend `name`, or of the fastest for `spec` when it is "auto"."""
    if name == "auto":
        name = _fastest(spec)
    if name not in DELTA_RULE:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(['auto', *DELTA_RULE])}")
    reason = DELTA_RULE[name].supports(spec)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return DELTA_RULE[name].function


def _fastest(spec):
    if spec.tokens == 1 and not spec.needs_grad:
        return "step"
    return "naive" if spec.tokens <= NAIVE_UP_TO else "chunk"


def _nothing(q, k, v, initial_state):
    """T = 0."""
    dtype = state_dtype(q, k, v)
    batch, _, heads, key_width = k.shape
    if initial_state is None:
        state = k.new_zeros(batch, heads, key_width, v.shape[3], dtype=dtype)
    else:
        state = initial_state.to(dtype, copy=True)
    return v.new_empty(batch, 0, q.shape[2], v.shape[3]), state
