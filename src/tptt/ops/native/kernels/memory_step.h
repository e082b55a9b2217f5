// One token through a whole memory branch. In PyTorch the same are some forty operators, whose calls take longer than their
// work (see tptt/memory/branch.py, which this follows line by line).
#pragma once
#include <cmath>

#include "step.h"

namespace {

inline float sigmoid(float x) { return 1.f / (1.f + std::exp(-x)); }

inline int feature_width(const TpttMemoryStep& p) {
  return int(p.features == TPTT_SIGN_SPLIT ? 2 * p.map_height : p.map_height);
}

// out [K], the unit vector of x's features: see TpttFeatures. map [M, D] or null.
inline void features(const TpttMemoryStep& p, const float* x, const float* map, float* mapped, float* out) {
  const int height = int(p.map_height), count = feature_width(p);
  const float* y = x;
  if (map) {
    matrix_vector(map, x, height, int(p.head_width), mapped);
    y = mapped;
  }
  int i = 0;
  if (p.features == TPTT_CUBIC) {
    for (; i < height; i++) {
      const float positive = y[i] < 0.f ? 0.f : y[i];  // a NaN stays one
      out[i] = positive * positive * positive;
    }
  } else {
    for (; i + LANES <= height; i += LANES) {
      const Vec v = load(y + i), one = splat(1.f);
      store(out + i, v / (one + exp(-v)));
      if (map) store(out + height + i, -v / (one + exp(v)));
    }
    for (; i < height; i++) {
      out[i] = y[i] * sigmoid(y[i]);
      if (map) out[height + i] = -y[i] * sigmoid(-y[i]);
    }
  }
  const float length = std::sqrt(dot(out, out, count));
  const float factor = 1.f / (length > 1e-6f ? length : 1e-6f);
  for (int j = 0; j < count; j++) out[j] *= factor;
}

struct MemoryScratch {
  float *hidden, *raw, *mapped, *key, *query, *value, *read, *u;
  int32_t *first, *second;  // [K]: rows of the state

  MemoryScratch(const TpttMemoryStep& p, Arena& arena)
      : hidden(arena.take(p.hidden_width)), raw(arena.take(p.head_width)), mapped(arena.take(p.map_height)),
        key(arena.take(feature_width(p))), query(arena.take(feature_width(p))), value(arena.take(p.value_width)),
        read(arena.take(p.value_width)), u(arena.take(p.value_width)),
        first(reinterpret_cast<int32_t*>(arena.take(feature_width(p)))),
        second(reinterpret_cast<int32_t*>(arena.take(feature_width(p)))) {}
};

// The i < count with wanted(i).
template <class Wanted> inline Listed listed(int count, int32_t* list, Wanted wanted) {
  int found = 0;
  for (int i = 0; i < count; i++) {
    list[found] = i;
    found += wanted(i);
  }
  return {found, list};
}

// read = state^T reader. Half of all cubic features are zero, and so much of the state need not be read.
inline void read_state(const TpttMemoryStep& p, float* state, const float* reader, int32_t* list, float* read) {
  const int width = int(p.value_width), keys = feature_width(p);
  if (p.features == TPTT_CUBIC)
    read_rows(state, width, listed(keys, list, [&](int i) { return reader[i] != 0.f; }), reader, read);
  else
    read_rows(state, width, Every{keys}, reader, read);
}

// state <- decay state + key u^T, then read = state^T query; without a decay only where the two are not zero.
inline void write_state(const TpttMemoryStep& p, float* state, const MemoryScratch& s, float decay) {
  const int width = int(p.value_width), keys = feature_width(p);
  if (p.features != TPTT_CUBIC || p.decay_bias)
    return write_rows(state, width, Every{keys}, s.key, s.u, decay, s.query, s.read);
  const Listed written = listed(keys, s.first, [&](int i) { return s.key[i] != 0.f; });
  const Listed others = listed(keys, s.second, [&](int i) { return (s.key[i] == 0.f) & (s.query[i] != 0.f); });
  write_rows(state, width, written, s.key, s.u, decay, s.query, s.read);
  read_more(state, width, others, s.query, s.read);
}

inline float gate(const float* weight, const float* bias, int64_t head, const float* hidden, int width) {
  return (weight ? dot(weight + head * width, hidden, width) : 0.f) + (bias ? bias[head] : 0.f);
}

inline void memory_step_state(const TpttMemoryStep& p, const MemoryScratch& s, int64_t b, int64_t h) {
  const int width = int(p.head_width), values = int(p.value_width), hidden = int(p.hidden_width);
  const int64_t source = b * (p.states / p.copies) + h / p.copies;
  float* state = p.state + (b * p.states + h) * feature_width(p) * values;
  const float mu_logit = std::log(*p.mag_weight / (1.f - *p.mag_weight));  // 0 and 1 give infinities, which are meant
  const auto map_of = [&](const float* maps, int64_t head) { return maps ? maps + head * p.map_height * width : nullptr; };
  const auto load_query = [&](int64_t head) {
    load_row(p.q, (b * p.states * p.groups + head) * width, p.bfloat16, s.raw, width);
    features(p, s.raw, map_of(p.query_map, head), s.mapped, s.query);
  };
  load_row(p.hidden, b * hidden, p.bfloat16, s.hidden, hidden);
  load_row(p.k, source * width, p.bfloat16, s.raw, width);
  features(p, s.raw, map_of(p.key_map, h), s.mapped, s.key);
  load_row(p.v, source * values, p.bfloat16, s.value, values);
  const float beta = sigmoid(gate(p.write_weight, p.write_bias, h, s.hidden, hidden));
  const float decay = p.decay_bias ? sigmoid(gate(p.decay_weight, p.decay_bias, h, s.hidden, hidden)) : 1.f;
  if (p.delta) read_state(p, state, s.key, s.first, s.read);
  for (int j = 0; j < values; j++) s.u[j] = beta * (p.delta ? s.value[j] - decay * s.read[j] : s.value[j]);
  load_query(h * p.groups);
  write_state(p, state, s, decay);
  for (int64_t g = 0; g < p.groups; g++) {
    const int64_t head = h * p.groups + g, at = (b * p.states * p.groups + head) * values;
    if (g) {
      load_query(head);
      read_state(p, state, s.query, s.first, s.read);
    }
    const float scale = 1.f / std::sqrt(dot(s.read, s.read, values) / float(values) + 1e-6f);
    const float mu = sigmoid(mu_logit + gate(p.mix_weight, p.mix_bias, head, s.hidden, hidden));
    load_row(p.softmax, at, p.bfloat16, s.value, values);
    for (int j = 0; j < values; j++) {
      const float memory = s.read[j] * scale * p.output_scale[head * values + j], apart = memory - s.value[j];
      s.read[j] = mu < .5f ? s.value[j] + mu * apart : memory - (1.f - mu) * apart;
    }
    store_row(p.out, at, p.bfloat16, s.read, values);
  }
}

inline void memory_step(const TpttMemoryStep& p) { each_head<MemoryScratch>(p, p.states, memory_step_state); }

}  // namespace
