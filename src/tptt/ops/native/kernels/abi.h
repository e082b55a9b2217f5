// What crosses the C boundary. Mirrored by ../structs.py; change both together.
#pragma once
#include <cstdint>

// A tensor in the caller's layout: strides in elements, the last axis contiguous.
struct TpttTensor {
  void* data;  // null: absent
  int64_t batch, token, write, head;
};

// Legend: B batch, T tokens, N writes per token, H key/value heads, G query heads per key/value head, K key width,
// V value width. States are contiguous float [B, H, K, V]; `saved` is [B, H, segments, K, V], one before each segment.
struct TpttProblem {
  int64_t batch, tokens, writes, heads, groups, key_width, value_width;
  int64_t chunk;    // tokens of a chunk, a multiple of 4
  int64_t segment;  // chunks between two saved states
  int64_t threads;
  float scale;
  int32_t delta;     // 0: linear attention
  int32_t bfloat16;  // of q, k, v, o and their gradients; all else is float
  TpttTensor q, k, v, beta, g, o;
  const float* initial_state;  // null: zero
  float* final_state;          // forward only
  float* saved;                // forward: null where nothing is kept
  // backward only
  TpttTensor d_o, d_q, d_k, d_v, d_beta, d_g;
  const float* d_final_state;  // null: zero
  float* d_initial_state;      // always written
};

// One token; every tensor contiguous: q, o [B, G*H, .], k, v [B, N, H, .], beta [B, N, H], g [B, H].
struct TpttStep {
  int64_t batch, writes, heads, groups, key_width, value_width, threads;
  float scale;
  int32_t delta, bfloat16;
  const void *q, *k, *v;
  const float *beta, *g;  // may be null
  float* state;           // overwritten
  void* o;
};
