"""The public operators: checked arguments in one layout, packed sequences, dispatch.

Legend: B batch, T tokens, N writes per token, H key/value heads, G query heads per key/value head, K key width, V value
width.
"""

import os

from .backends import BACKENDS, select
from .call import Call, Inputs
from .dtypes import state_dtype, without_autocast
from .native import step_as_given, unavailable
from .packed import run_packed
from .spec import Spec
from .tracing import traced
from .validate import check_chunk_size, check_cu_seqlens, check_scale, check_values

DEBUG_VARIABLE = "TPTT_DEBUG"
"""Environment variable. Where it is set and not empty, every call checks the values of beta and g, which costs a
synchronisation."""
MOST_BETA = 2.0
"""Beyond it the delta rule's transition has an eigenvalue below -1 and the state explodes."""
NO_BETA = "beta must be a tensor, got NoneType; a delta rule that always writes in full has beta = 1"


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
    cu_seqlens=None,
):
    """Delta rule (arXiv 2406.06484 eq. 2); with g gated (2412.06464 eq. 10) or, per channel, KDA (2510.26692); with
    N >= 2 writes per token DeltaProduct (2502.10297).

    For every token t, with S the state of the key/value head:
        S = exp(g_t) S;  for j in 1..N: S += beta_tj k_tj (v_tj - S^T k_tj)^T;  o_t = scale * S^T q_t

    Args:
        q: queries [B, T, G*H, K], unit L2 norm by convention. Query head h reads the state of head h // G.
        k: keys [B, T, H, K] or [B, T, N, H, K], unit L2 norm (longer keys make the recurrence itself unstable).
        v: values [B, T, H, V] or [B, T, N, H, V].
        beta: write strength [B, T, H] or [B, T, N, H], in [0, 1], or up to 2 with negative eigenvalues; 0 writes
            nothing.
        g: natural log of the decay, <= 0: [B, T, H], or per channel [B, T, H, K]; None or 0 is no decay.
        scale: factor on the output.
        initial_state: [B, H, K, V]; None is zero. Never modified.
        output_final_state: return the state after the last token as well.
        backend: "auto" or a name from `available_backends()`. `backend_for` says what "auto" takes.
        chunk_size: tokens per chunk of backend "chunk", a power of two; None takes the default for these widths. It
            changes speed and rounding only; other backends ignore it.
        cu_seqlens: [S + 1] int32 or int64, for S sequences packed into one row (B = 1): where each begins, and T. Each
            starts from its own state: initial_state and the final state are then [S, H, K, V].

    Inputs are floating point of any precision, also mixed; all arithmetic is done in the state's precision, whatever
    autocast says. T = 0 gives an empty output and leaves the state as it was.

    Returns:
        o [B, T, G*H, V] in v's dtype, and the final state [B, H, K, V] or None. The state is float32; float64 when q,
        k or v is float64.

    Raises:
        TypeError: an argument is no floating point tensor, or cu_seqlens none of integers.
        ValueError: shapes or devices do not fit together, the backend is unknown or cannot serve this call, chunk_size
            is no power of two, cu_seqlens does not ascend from 0 to T; with the environment variable TPTT_DEBUG also
            a beta outside [0, 2] or a g above 0.
        RuntimeError: second derivatives are asked of "chunk" or "native" (use "naive"), or memory runs out.
    """
    if beta is None:
        raise TypeError(NO_BETA)
    call = Call(Inputs(q, k, v, beta, g), initial_state, True, scale, output_final_state, chunk_size)
    return _run(call, backend, cu_seqlens)


def linear_attention(
    q,
    k,
    v,
    beta=None,
    g=None,
    *,
    scale=1.0,
    initial_state=None,
    output_final_state=False,
    backend="auto",
    chunk_size=None,
    cu_seqlens=None,
):
    """Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236); with g gated (2312.06635).

    For every token t:  S = exp(g_t) S;  for j in 1..N: S += beta_tj k_tj v_tj^T;  o_t = scale * S^T q_t

    Args, returns and raises: as `delta_rule`; beta may be None, which is 1, and has no upper bound.
    """
    call = Call(Inputs(q, k, v, beta, g), initial_state, False, scale, output_final_state, chunk_size)
    return _run(call, backend, cu_seqlens)


def delta_rule_step(q, k, v, beta, g=None, *, state, scale=1.0, inplace=False, backend="auto"):
    """One token of `delta_rule`, for decoding.

    Args: as in `delta_rule` with T = 1; state [B, H, K, V] before the token; inplace: overwrite `state`, which must
        then have the state's dtype (float32; float64 when q, k or v is float64), and nothing may need a gradient;
        backend: "auto" ("native" where it serves the call, else "step") or a name from `available_backends()`; with
        inplace "native" or "step".
    Returns: o [B, 1, G*H, V] in v's dtype, and the state after the token (`state` itself when inplace).
    Raises: TypeError, ValueError as `delta_rule`; ValueError when T is not 1 or inplace cannot be served.
    """
    if beta is None:
        raise TypeError(NO_BETA)
    inputs = Inputs(q, k, v, beta, g)
    spec = Spec.of(inputs, state, True)
    if spec.tokens != 1:
        raise ValueError(f"delta_rule_step takes exactly one token, got T = {spec.tokens}")
    _check_numbers(scale, beta, g, MOST_BETA)
    if backend == "auto":
        if spec.step_sizes and _may_step_as_given():
            after = state if inplace else state.clone()
            return step_as_given(inputs, after, scale, True, spec.step_sizes), after
        chosen = BACKENDS["step" if BACKENDS["native"].supports(spec) else "native"]
    else:
        chosen = select(backend, spec)
    if inplace:
        _check_inplace(backend, chosen, state, state_dtype(q, k, v), spec.needs_grad)
    return _serve(Call(inputs, state, True, scale, inplace=inplace), chosen, spec)


def _run(call, backend, cu_seqlens):
    """(o, final state or None) of a call of any length, packed where there are `cu_seqlens`."""
    inputs = call.inputs
    spec = Spec.of(inputs, call.initial_state if cu_seqlens is None else None, call.delta)
    check_chunk_size(call.chunk_size)
    cuts = None if cu_seqlens is None else check_cu_seqlens(cu_seqlens, inputs.k, inputs.v, call.initial_state)
    _check_numbers(call.scale, inputs.beta, inputs.g, MOST_BETA if call.delta else float("inf"))
    if backend == "auto" and spec.step_sizes and _may_step_as_given():
        state = call.initial_state.clone()
        o = step_as_given(inputs, state, call.scale, call.delta, spec.step_sizes)
    elif cuts is None:
        o, state = _serve(call, select(backend, spec), spec)
    else:
        o, state = run_packed(lambda part: _serve_part(part, backend), call, cuts)
    return o, state if call.output_final_state else None


def _may_step_as_given():
    """Whether a call that has `Spec.step_sizes` may go straight to the kernel of one token."""
    return not unavailable() and not traced()


def _serve_part(call, backend):
    """(o, final state) of sequences of similar length that were packed."""
    spec = Spec.of(call.inputs, call.initial_state, call.delta)
    return _serve(call, select(backend, spec), spec)


def _serve(call, backend, spec):
    """(o, final state) of a call by a backend that supports it."""
    if not spec.tokens:
        return _nothing(call)
    with without_autocast(spec.device):
        return backend.run(call, spec.needs_grad)


def _check_numbers(scale, beta, g, most):
    if not isinstance(scale, float | int):
        check_scale(scale)
    if DEBUG_VARIABLE in os.environ and os.environ[DEBUG_VARIABLE]:  # faster than `get` where it is not set
        check_values(beta, g, most)


def _check_inplace(name, backend, state, dtype, needs_grad):
    if "inplace" not in backend.options:
        serving = [n for n, known in BACKENDS.items() if "inplace" in known.options]
        raise ValueError(f"backend {name!r} makes a new state: inplace is for auto, {', '.join(serving)}")
    if state is None or state.dtype != dtype:
        raise ValueError(f"inplace needs a state of {dtype}, got {None if state is None else state.dtype}")
    if needs_grad:
        raise ValueError("inplace overwrites what a gradient needs: use inplace=False or torch.no_grad()")


def _nothing(call):
    """(o, final state) of no tokens, T = 0."""
    q, k, v, *_ = call.inputs
    dtype = state_dtype(q, k, v)
    batch, (heads, key_width), value_width = len(k), k.shape[-2:], v.shape[-1]
    if call.initial_state is None:
        state = k.new_zeros(batch, heads, key_width, value_width, dtype=dtype)
    else:
        state = call.initial_state.to(dtype, copy=True)
    return v.new_empty(batch, 0, q.shape[2], value_width), state
