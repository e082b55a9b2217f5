// Forward, chunk after chunk. Derivation: ../../README.md, "Chunkwise form".
#pragma once
#include "chunk.h"

namespace {

inline int64_t count_of_chunks(const TpttProblem& p) { return (p.tokens + p.chunk - 1) / p.chunk; }
inline int64_t count_of_chunk_groups(const TpttProblem& p) {
  return (count_of_chunks(p) + p.chunk_group - 1) / p.chunk_group;
}

// Heads of a batch row that one thread works through together.
struct Task {
  int64_t b, h;
  int heads;
};

// Rows of neighbouring heads share pages of memory, and a thread has to look up each page. A task takes as many heads
// as fill half a page together, as long as no thread gets more to do than with one head per task.
struct Tasks {
  int64_t heads, each_row, count;
  int together;

  explicit Tasks(const TpttProblem& p) : heads(p.heads) {
    const int64_t fill = 2048 / (p.key_width * (p.bfloat16 ? 2 : 4));
    together = int(fill < 1 ? 1 : fill < MOST ? fill : MOST);
    auto rounds = [&](int64_t each) {
      return (p.batch * ((heads + each - 1) / each) + p.threads - 1) / p.threads * each;
    };
    while (together > 1 && rounds(together) > rounds(1)) together--;
    each_row = (heads + together - 1) / together, count = p.batch * each_row;
  }

  Task get(int64_t i) const {
    const int64_t h = i % each_row * together, left = heads - h;
    return {i / each_row, h, int(left < together ? left : together)};
  }

 private:
  static constexpr int MOST = 8;
};

// The state of head ``i`` of a task among the caller's states; null where the caller has none.
template <class Float>
Float* state_of(const TpttProblem& p, const Sizes& z, Float* states, const Task& task, int i) {
  return states ? states + (task.b * p.heads + task.h + i) * z.given_state() : nullptr;
}
inline float* saved_state(const TpttProblem& p, const Sizes& z, const Task& task, int i, int64_t group) {
  return p.saved + ((task.b * p.heads + task.h + i) * count_of_chunk_groups(p) + group) * z.given_state();
}

// What the backward needs of a chunk: the state before it, M = [A; P] and u.
struct Kept {
  float *state, *m, *u;
  static constexpr int64_t FLOATS_OF_POINTERS = 6;  // room for one object of this type in an arena

  static int64_t floats(const Sizes& z) {
    return z.state() + int64_t(z.rows) * z.columns + int64_t(z.columns) * z.values;
  }
  Kept(const Sizes& z, float* memory) : state(memory), m(state + z.state()), u(m + int64_t(z.rows) * z.columns) {}
};
static_assert(sizeof(Kept) <= 4 * Kept::FLOATS_OF_POINTERS);
inline Kept saved_chunk(const TpttProblem& p, const Sizes& z, const Place& at) {
  return {z, p.saved + ((at.b * p.heads + at.h) * count_of_chunks(p) + at.start / z.tokens) * p.kept};
}

struct ForwardScratch {
  float *m, *u, *out, *states, *state;  // out lies behind u; state belongs to the current head
  Right read, written;                  // of products: S, k^^T u

  ForwardScratch(const Sizes& z, int together, Arena& arena)
      : m(arena.take(int64_t(z.rows) * z.columns)),
        u(arena.take(int64_t(z.rows) * z.values)),
        out(u + int64_t(z.columns) * z.values),
        states(arena.take(together * z.state())),
        state(states),
        read(z.values, z.keys, arena),
        written(z.values, z.columns, arena) {}
};

// Rows of [k; q] times S, from row `first` on, to the same rows of `found` [., V].
inline void read_state(const Sizes& z, Chunk& c, const float* state, Right& read, int first, int rows, float* found) {
  float* to = found + first * z.values;
  if (z.zero_before(c)) {
    memset(to, 0, 4 * int64_t(rows) * z.values);
  } else {
    read.take(state, z.values, z.values, z.keys);
    product<Onto::NOTHING>(c.ahead, to, z.values, c.rows, first, rows, read, z.values, z.keys);
  }
}

// o [G*C, V] = scale (q~ S + P u), in the caller's layout.
inline void write_out(const TpttProblem& p, const Sizes& z, Chunk& c, ForwardScratch& s) {
  const int width = z.values, row = z.columns;
  const float* mixing = s.m + z.columns * row;
  for (int m = 0; m < z.queries; m += 4) {
    if (p.g.data)
      for (int i = m; i < m + 4; i++) scale_rows(s.out + i * width, width, c.since_start + position_of(z, i), 1);
    product<Onto::SUM>(c.ahead, s.out + m * width, width, mixing + m * row, row, 1, s.u, width, 4, width,
                       position_of(z, m + 3) + 1);
  }
  for (int g = 0; g < z.groups; g++)
    for (int i = 0; i < z.tokens && c.start + i < p.tokens; i++)
      store_row(p.o.data, offset(p.o, c.b, c.start + i, 0, c.h * z.groups + g), p.bfloat16,
                s.out + (g * z.tokens + i) * width, z.value_width, p.scale, z.streams);
}

inline void forward_chunk(const TpttProblem& p, const Sizes& z, Chunk& c, const Place& at, const Place& next,
                          ForwardScratch& s) {
  load_chunk(p, z, at, c);
  c.ahead.forget();
  if (!z.streams) ask_queries(p, z, c.ahead, p.o, at, z.value_width);
  ask_inputs(p, z, c.ahead, next);
  mix(p, z, c, s.m);
  read_state(z, c, s.state, s.read, z.first, z.rows - z.first, s.u);  // puts what the queries read into out
  updates(p, z, c, s.m, s.u);
  if (p.kept) {
    const Kept kept = saved_chunk(p, z, at);
    memcpy(kept.state, s.state, 4 * z.state());
    memcpy(kept.m, s.m, 4 * int64_t(z.rows) * z.columns);
    memcpy(kept.u, s.u, 4 * int64_t(z.columns) * z.values);
  }
  write_out(p, z, c, s);
  if (!z.nothing_after(at)) advance(p, z, c, s.u, s.u, s.written, s.state, s.state);
}

// The heads of the task take turns, a few chunks each.
inline void forward_task(const TpttProblem& p, const Sizes& z, Chunk& c, ForwardScratch& s, const Task& task) {
  constexpr int64_t FEW = 4;
  const int64_t chunks = count_of_chunks(p);
  for (int i = 0; i < task.heads; i++)
    load_state(z, state_of(p, z, p.initial_state, task, i), s.states + i * z.state());
  for (int64_t first = 0; first < chunks; first += FEW) {
    const int64_t end = first + FEW < chunks ? first + FEW : chunks;
    for (int i = 0; i < task.heads; i++) {
      s.state = s.states + i * z.state();
      for (int64_t n = first; n < end; n++) {
        if (p.saved && !p.kept && n % p.chunk_group == 0)
          store_state(z, s.state, saved_state(p, z, task, i, n / p.chunk_group));
        const bool last = n + 1 == end, last_head = i + 1 == task.heads;
        const int64_t after = !last ? n + 1 : last_head ? end : first, head = !last ? i : last_head ? 0 : i + 1;
        forward_chunk(p, z, c, {task.b, task.h + i, n * z.tokens},
                      after < chunks ? Place{task.b, task.h + head, after * z.tokens} : NOWHERE, s);
      }
    }
  }
  for (int i = 0; i < task.heads; i++) store_state(z, s.states + i * z.state(), state_of(p, z, p.final_state, task, i));
}

inline TpttStatus forward(const TpttProblem& p) {
  const Sizes z(p);
  const Tasks tasks(p);
  Arena measured;
  Chunk{z, measured}, ForwardScratch{z, tasks.together, measured};
  const Workspace workspace(p.threads, measured.taken());
  if (workspace.failed()) return TPTT_OUT_OF_MEMORY;
#pragma omp parallel num_threads(int(p.threads))
  {
    const NoSubnormals here;
    const Unit unit;
    Arena arena = workspace.part();
    Chunk c(z, arena);
    ForwardScratch s(z, tasks.together, arena);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks.count; i++) forward_task(p, z, c, s, tasks.get(i));
    end_streams();
  }
  return TPTT_OK;
}

}  // namespace
