// What crosses the C boundary. ../structs.py mirrors it; change both together.
#pragma once
#include <cstdint>

// What every function returns. A call that fails has changed nothing that the caller gave it to overwrite.
enum TpttStatus : int32_t { TPTT_OK, TPTT_OUT_OF_MEMORY };

// A tensor in the caller's layout: strides in elements, the last axis contiguous.
struct TpttTensor {
  void* data;  // null: absent
  int64_t batch, token, write, head;
};

// Legend: B batch, T tokens, N writes per token, H key/value heads, G query heads per key/value head, K key width,
// V value width. States are contiguous float [B, H, K, V]; `saved` is [B, H, chunk groups, K, V], one state before each
// group.
struct TpttProblem {
  int64_t batch, tokens, writes, heads, groups, key_width, value_width;
  int64_t chunk;        // tokens of a chunk, a multiple of 4
  int64_t chunk_group;  // chunks between two saved states
  int64_t kept;         // 0: states are saved
  int64_t threads;
  float scale;
  int32_t delta;     // 0: linear attention
  int32_t bfloat16;  // of q, k, v, o and their gradients; all else is float
  TpttTensor q, k, v, beta, g, o;
  const float* initial_state;  // null: zero
  float* final_state;          // forward only; null: not wanted
  float* saved;                // forward: null where nothing is kept
  // backward only
  TpttTensor d_o, d_q, d_k, d_v, d_beta, d_g;
  const float* d_final_state;  // null: zero
  float* d_initial_state;      // null: there was no initial state
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

// Fourier features of vectors of length 1, all contiguous. C = ``count`` frequencies, M = ``height``, a multiple of 16.
struct TpttFourier {
  int64_t rows, height, count;
  int64_t padded;  // C rounded up to a multiple of 16
  int64_t threads;
  const float* mapped;       // [rows, M]; forward only
  const float* frequencies;  // forward [M, padded], of which C columns count; backward [C, M]
  float* out;                // [rows, 2 C]; backward reads it
  const float* d_out;        // [rows, 2 C]; backward only
  float* d_mapped;           // [rows, M]; backward only
};

// One token through a whole memory branch: feature maps, gates, the recurrence, normalisation, Memory as Gate.
// Legend: B batch, S states, G query heads per state, C states per key head, D width of raw keys and queries, M rows of
// a feature map (D without one), K width of the features, V value width, E width of the layer's input, R width of the
// mixing gate's input (E unless mix_down maps the layer's input first). All tensors are contiguous; parameters are
// float.
enum TpttFeatures : int32_t {
  TPTT_SILU,        // of the raw vector, K = D
  TPTT_SIGN_SPLIT,  // SiLU of the mapped vector and its negative, K = 2 M
  TPTT_FOURIER      // cosines and sines of the mapped vector at length 1, multiplied by ``frequencies``
};
struct TpttMemoryStep {
  int64_t batch, states, groups, copies, head_width, map_height, value_width, hidden_width, feature_width, mix_width;
  int64_t threads;
  int32_t delta, bfloat16;                        // bfloat16: of q, k, v, hidden, softmax and out
  int32_t features;                               // TpttFeatures
  const void *q, *k, *v, *hidden, *softmax;       // [B, S G, D], [B, S/C, D], [B, S/C, V], [B, E], [B, S G, V]
  const float *query_map, *key_map;               // [S G, M, D], [S, M, D]; null with TPTT_SILU
  const float *write_weight, *write_bias;         // [S, E], [S]; null: zero
  const float *decay_weight, *decay_bias;         // [S, E], [S]; weight null: zero, bias null: no decay
  const float *mix_weight, *mix_bias, *mix_down;  // [S G, R], [S G], [R, E]; null: zero, zero, no map
  const float* frequencies;                       // [K/2, M]; null unless TPTT_FOURIER
  const float* output_scale;                      // [S G, V]
  const float* mag_weight;                        // the Memory-as-Gate weight; the mixing gate is added to its logit
  float* mix_input;                               // [B, R], overwritten; null without mix_down
  float* state;                                   // [B, S, K, V], overwritten
  void* out;                                      // [B, S G, V]
};
