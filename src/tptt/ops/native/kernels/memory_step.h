// One token through a whole memory branch. In PyTorch the same are some forty operators, whose calls take longer than their
// work (see tptt/memory/branch.py, which this follows line by line).
#pragma once
#include <cmath>

#include "step.h"

namespace {

inline float sigmoid(float x) { return 1.f / (1.f + std::exp(-x)); }

// Unit vectors SiLU([Wx, -Wx]) / ||.|| or, without a map, SiLU(x) / ||.||.
inline void features(const float* x, const float* map, int width, float* mapped, float* out) {
  const int count = map ? 2 * width : width;
  for (int e = 0; e < width; e++) mapped[e] = map ? dot(map + int64_t(e) * width, x, width) : x[e];
  int i = 0;
  for (; i + LANES <= width; i += LANES) {
    const Vec y = load(mapped + i), one = splat(1.f);
    store(out + i, y / (one + exp(-y)));
    if (map) store(out + width + i, -y / (one + exp(y)));
  }
  for (; i < width; i++) {
    out[i] = mapped[i] * sigmoid(mapped[i]);
    if (map) out[width + i] = -mapped[i] * sigmoid(-mapped[i]);
  }
  const float length = std::sqrt(dot(out, out, count));
  const float factor = 1.f / (length > 1e-6f ? length : 1e-6f);
  for (int j = 0; j < count; j++) out[j] *= factor;
}

struct MemoryScratch {
  float *hidden, *raw, *mapped, *key, *query, *value, *read, *u;

  MemoryScratch(const TpttMemoryStep& p, Arena& arena)
      : hidden(arena.take(p.hidden_width)), raw(arena.take(p.head_width)), mapped(arena.take(p.head_width)),
        key(arena.take(2 * p.head_width)), query(arena.take(2 * p.head_width)), value(arena.take(p.value_width)),
        read(arena.take(p.value_width)), u(arena.take(p.value_width)) {}
};

inline float gate(const float* weight, const float* bias, int64_t head, const float* hidden, int width) {
  return (weight ? dot(weight + head * width, hidden, width) : 0.f) + (bias ? bias[head] : 0.f);
}

inline void memory_step_state(const TpttMemoryStep& p, const MemoryScratch& s, int64_t b, int64_t h) {
  const int width = int(p.head_width), values = int(p.value_width), hidden = int(p.hidden_width);
  const int keys = p.key_map ? 2 * width : width;
  const int64_t source = b * (p.states / p.copies) + h / p.copies;
  float* state = p.state + (b * p.states + h) * keys * values;
  const auto map_of = [&](const float* maps, int64_t head) { return maps ? maps + head * width * width : nullptr; };
  const auto load_query = [&](int64_t head) {
    load_row(p.q, (b * p.states * p.groups + head) * width, p.bfloat16, s.raw, width);
    features(s.raw, map_of(p.query_map, head), width, s.mapped, s.query);
  };
  load_row(p.hidden, b * hidden, p.bfloat16, s.hidden, hidden);
  load_row(p.k, source * width, p.bfloat16, s.raw, width);
  features(s.raw, map_of(p.key_map, h), width, s.mapped, s.key);
  load_row(p.v, source * values, p.bfloat16, s.value, values);
  const float beta = sigmoid(gate(p.write_weight, p.write_bias, h, s.hidden, hidden));
  const float decay = p.decay_bias ? sigmoid(gate(p.decay_weight, p.decay_bias, h, s.hidden, hidden)) : 1.f;
  if (p.delta) pass_all<false>(state, values, keys, nullptr, nullptr, 1.f, s.key, s.read);
  for (int j = 0; j < values; j++) s.u[j] = beta * (p.delta ? s.value[j] - decay * s.read[j] : s.value[j]);
  load_query(h * p.groups);
  pass_all<true>(state, values, keys, s.key, s.u, decay, s.query, s.read);
  for (int64_t g = 0; g < p.groups; g++) {
    const int64_t head = h * p.groups + g, at = (b * p.states * p.groups + head) * values;
    if (g) {
      load_query(head);
      pass_all<false>(state, values, keys, nullptr, nullptr, 1.f, s.query, s.read);
    }
    const float scale = 1.f / std::sqrt(dot(s.read, s.read, values) / float(values) + 1e-6f);
    const float mu = sigmoid(p.mu_logit + gate(p.mix_weight, p.mix_bias, head, s.hidden, hidden));
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
