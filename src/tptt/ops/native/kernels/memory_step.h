// One token through a whole memory branch, in one call. PyTorch would call many small operators, each of which takes
// longer to call than to compute. `LinearMemory` of tptt.memory is the definition that this follows line by line.
#pragma once
#include "fourier.h"
#include "step.h"

namespace {

inline float sigmoid(float x) { return 1.f / (1.f + std::exp(-x)); }

// x / ||x||
inline void normalize(float* x, int count) {
  const float length = std::sqrt(dot(x, x, count)), factor = 1.f / (length > 1e-6f ? length : 1e-6f);
  for (int i = 0; i < count; i++) x[i] *= factor;
}

// out [K], the unit vector of x's features: see TpttFeatures. map [M, D] or null.
inline void features(const TpttMemoryStep& p, const float* x, const float* map, float* mapped, float* angles,
                     float* out) {
  const int height = int(p.map_height), count = int(p.feature_width);
  const float* y = x;
  if (map) {
    matrix_vector(map, x, height, int(p.head_width), mapped);
    y = mapped;
  }
  if (p.features == TPTT_FOURIER) {
    normalize(mapped, height);
    matrix_vector(p.frequencies, mapped, count / 2, height, angles);
    return waves(angles, count / 2, out);
  }
  int i = 0;
  for (; i + LANES <= height; i += LANES) {
    const Vec v = load(y + i), one = splat(1.f);
    store(out + i, v / (one + exp(-v)));
    if (map) store(out + height + i, -v / (one + exp(v)));
  }
  for (; i < height; i++) {
    out[i] = y[i] * sigmoid(y[i]);
    if (map) out[height + i] = -y[i] * sigmoid(-y[i]);
  }
  normalize(out, count);
}

struct MemoryScratch {
  float *hidden, *raw, *mapped, *angles, *key, *query, *value, *read, *u, *found;

  MemoryScratch(const TpttMemoryStep& p, Arena& arena)
      : hidden(arena.take(p.hidden_width)),
        raw(arena.take(p.head_width)),
        mapped(arena.take(p.map_height)),
        angles(arena.take(p.feature_width / 2)),
        key(arena.take(p.feature_width)),
        query(arena.take(p.feature_width)),
        value(arena.take(p.value_width)),
        read(arena.take(p.value_width)),
        u(arena.take(p.value_width)),
        found(arena.take(p.value_width)) {}
};

inline float gate(const float* weight, const float* bias, int64_t head, const float* hidden, int width) {
  return (weight ? dot(weight + head * width, hidden, width) : 0.f) + (bias ? bias[head] : 0.f);
}

inline void memory_step_state(const TpttMemoryStep& p, const MemoryScratch& s, int64_t b, int64_t h) {
  const int width = int(p.head_width), values = int(p.value_width), hidden = int(p.hidden_width);
  const int64_t source = b * (p.states / p.copies) + h / p.copies;
  const int keys = int(p.feature_width);
  const float* mix_input = p.mix_down ? p.mix_input + b * p.mix_width : s.hidden;
  float* state = p.state + (b * p.states + h) * keys * values;
  const float mu_logit =
      std::log(*p.mag_weight / (1.f - *p.mag_weight));  // minus or plus infinity for 0 and 1, as intended
  const auto map_of = [&](const float* maps, int64_t head) {
    return maps ? maps + head * p.map_height * width : nullptr;
  };
  const auto load_query = [&](int64_t head) {
    load_row(p.q, (b * p.states * p.groups + head) * width, p.bfloat16, s.raw, width);
    features(p, s.raw, map_of(p.query_map, head), s.mapped, s.angles, s.query);
  };
  load_row(p.hidden, b * hidden, p.bfloat16, s.hidden, hidden);
  load_row(p.k, source * width, p.bfloat16, s.raw, width);
  features(p, s.raw, map_of(p.key_map, h), s.mapped, s.angles, s.key);
  load_row(p.v, source * values, p.bfloat16, s.value, values);
  const float beta = sigmoid(gate(p.write_weight, p.write_bias, h, s.hidden, hidden));
  const float decay = p.decay_bias ? sigmoid(gate(p.decay_weight, p.decay_bias, h, s.hidden, hidden)) : 1.f;
  load_query(h * p.groups);
  write_and_read(state, values, keys, 1, s.key, s.value, &beta, 0, decay, p.delta, s.query, s.u, s.found, s.read);
  for (int64_t g = 0; g < p.groups; g++) {
    const int64_t head = h * p.groups + g, at = (b * p.states * p.groups + head) * values;
    if (g) {
      load_query(head);
      read_rows(state, values, keys, s.query, s.read);
    }
    const float scale = p.delta ? 1.f : 1.f / std::sqrt(dot(s.read, s.read, values) / float(values) + 1e-6f);
    const float mu = sigmoid(mu_logit + gate(p.mix_weight, p.mix_bias, head, mix_input, int(p.mix_width)));
    load_row(p.softmax, at, p.bfloat16, s.value, values);
    for (int j = 0; j < values; j++) {
      const float memory = s.read[j] * scale * p.output_scale[head * values + j], apart = memory - s.value[j];
      s.read[j] = mu < .5f ? s.value[j] + mu * apart : memory - (1.f - mu) * apart;
    }
    store_row(p.out, at, p.bfloat16, s.read, values);
  }
}

struct RowScratch {
  float* hidden;

  RowScratch(const TpttMemoryStep& p, Arena& arena) : hidden(arena.take(p.hidden_width)) {}
};

// SiLU of a linear map of the layer's input: what the mixing gate of all heads of a batch row reads.
inline void mix_input(const TpttMemoryStep& p, const RowScratch& s, int64_t b, int64_t) {
  float* out = p.mix_input + b * p.mix_width;
  load_row(p.hidden, b * p.hidden_width, p.bfloat16, s.hidden, int(p.hidden_width));
  matrix_vector(p.mix_down, s.hidden, int(p.mix_width), int(p.hidden_width), out);
  for (int i = 0; i < p.mix_width; i++) out[i] *= sigmoid(out[i]);
}

inline TpttStatus memory_step(const TpttMemoryStep& p) {
  if (p.mix_down && each_head<RowScratch>(p, 1, mix_input) != TPTT_OK) return TPTT_OUT_OF_MEMORY;
  return each_head<MemoryScratch>(p, p.states, memory_step_state);
}

}  // namespace
