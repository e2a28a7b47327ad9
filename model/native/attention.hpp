// Rotary, the new rows of the KV slab, and attention over them: one task a span of new tokens and KV head.
// Invariant: the order of a query's sums does not depend on which queries share its walk over the keys.
#pragma once

#include <vector>

#include "product.hpp"

namespace {

constexpr int QUERIES = 16;  // rows that share one walk over the keys
constexpr int TILE = 64;     // tokens of the walk that are kept near

struct Shape {
  int32_t hidden, intermediate, heads, kv_heads, head_dim, threads;
  float eps;
};

struct LayerWeights {
  const void *qkv, *out, *gate_up, *down;
  const float *qkv_bias, *out_bias;
};

// New tokens: `widths[i]` of slot `slots[i]` behind its first `starts[i]`, packed one after the other.
// Strides are in elements. scores: [heads, tokens] of the last row in the last layer, or null.
struct Work {
  float* x;            // [rows, hidden], in place
  const float* cis;    // [rows, head_dim]: cos, sin, cos, sin, ...
  void* slab;          // of the first layer
  int64_t layer_stride, slot_stride, head_stride;  // a head's tokens lie side by side
  const int32_t *slots, *starts, *widths;
  float* scores;
  int32_t layers, rows, spans, keys_only;  // keys_only: the last layer's output is not wanted
};

struct Scratch {
  std::vector<float> qkv, mixed, gated;
  Scratch(const Shape& shape, int64_t rows)
      : qkv(rows * (shape.heads + 2 * shape.kv_heads) * shape.head_dim),
        mixed(rows * shape.heads * shape.head_dim),
        gated(rows * shape.intermediate) {}
};

inline void rotate(const float* in, const float* cis, int head_dim, float scale, float* out) {
  for (int i = 0; i < head_dim; i += 2) {
    float re = in[i] * scale, im = in[i + 1] * scale;
    out[i] = re * cis[i] - im * cis[i + 1];
    out[i + 1] = re * cis[i + 1] + im * cis[i];
  }
}

template <class W>
struct Head {  // one KV head's task in one span
  const Shape& shape;
  const Work& work;
  const float* qkv;
  W* rows;  // the slot's first key in the slab
  int head, first_row, start, width;

  int group() const { return shape.heads / shape.kv_heads; }
  int qkv_width() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }
  W* key(int token) const { return rows + head * work.head_stride + token * shape.head_dim; }
  W* value(int token) const { return key(token) + shape.kv_heads * work.head_stride; }

  // part: a query's head, or a key's behind them.
  const float* projected(int row, int part) const {
    return qkv + static_cast<int64_t>(row) * qkv_width() + part * shape.head_dim;
  }
  void turn(int row, int part, float scale, float* turned) const {
    int dim = shape.head_dim;
    rotate(projected(row, part), work.cis + static_cast<int64_t>(row) * dim, dim, scale, turned);
  }

  void write(float* turned) const {
    for (int i = 0; i < width; ++i) {
      turn(first_row + i, shape.heads + head, 1.0f, turned);
      const float* in = projected(first_row + i, shape.heads + shape.kv_heads + head);
      W *key_out = key(start + i), *value_out = value(start + i);
      for (int d = 0; d < shape.head_dim; ++d) narrow(turned[d], key_out[d]);
      for (int d = 0; d < shape.head_dim; ++d) narrow(in[d], value_out[d]);
    }
  }
};

inline float softmax(float* scores, int count) {  // to exponentials; returns one over their sum
  float top = largest(scores, count), sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int t = 0; t < count; ++t) sum += scores[t] = exp_(scores[t] - top);
  return 1.0f / sum;
}

// Products of Q queries [Q, dim] with `count` keys -> scores, Q rows that are `apart`. V sums at a time, since their
// lanes are summed together. Not inlined, as `weigh`: among the caller's values the sums would not stay in registers.
template <int DIM, int Q, class T>
[[gnu::noinline]] void score(const float* query, const T* keys, int count, int dim, float* scores, int64_t apart) {
  if constexpr (DIM == 0) {
    for (int q = 0; q < Q; ++q)
      for (int t = 0; t < count; ++t) {
        float sum = 0;
        for (int d = 0; d < dim; ++d) sum += query[q * dim + d] * wide(keys[t * dim + d]);
        scores[q * apart + t] = sum;
      }
  } else {
    constexpr int KEYS = V / Q;
    auto some = [&](auto key) {
      vf sums[V];
      for (int i = 0; i < V; ++i) sums[i] = vf{};
      for (int d = 0; d < DIM; d += 2 * V) {
        vf even[Q], odd[Q];
        for (int q = 0; q < Q; ++q) even[q] = load(query + q * DIM + d), odd[q] = load(query + q * DIM + d + V);
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; ++i) {
          vf low = half(key(i) + d, 0), high = half(key(i) + d, 1);
          for (int q = 0; q < Q; ++q) sums[q * KEYS + i] += even[q] * low;
          for (int q = 0; q < Q; ++q) sums[q * KEYS + i] += odd[q] * high;
        }
      }
      return lanes_summed(sums);
    };
    auto keep = [&](int t, int found, vf sums) {
      for (int q = 0; q < Q; ++q)
        std::memcpy(scores + q * apart + t, reinterpret_cast<const float*>(&sums) + q * KEYS, sizeof(float) * found);
    };
    int t = 0;
    for (; t + KEYS <= count; t += KEYS) keep(t, KEYS, some([&](int i) { return keys + t * DIM + i * DIM; }));
    // Behind the last key that key again.
    if (t < count) keep(t, count - t, some([&](int i) { return keys + std::min(t + i, count - 1) * DIM; }));
  }
}

// sums [Q, dim] += weights (Q rows of `count`, `apart`) x values [count, dim], token by token.
template <int DIM, int Q, class T>
[[gnu::noinline]] void weigh(const float* weights, int64_t apart, const T* values, int count, int dim, float* sums) {
  if constexpr (DIM == 0) {
    for (int q = 0; q < Q; ++q)
      for (int t = 0; t < count; ++t)
        for (int d = 0; d < dim; ++d) sums[q * dim + d] += weights[q * apart + t] * wide(values[t * dim + d]);
  } else {
    constexpr int PARTS = std::min(DIM / V, 8 / Q);
    for (int from = 0; from < DIM; from += PARTS * V) {
      vf held[Q][PARTS];
      for (int q = 0; q < Q; ++q)
        for (int i = 0; i < PARTS; ++i) held[q][i] = load(sums + q * DIM + from + i * V);
      for (int t = 0; t < count; ++t) {
        vf weight[Q];
        for (int q = 0; q < Q; ++q) weight[q] = spread(weights[q * apart + t]);
#pragma GCC unroll 8
        for (int i = 0; i < PARTS; ++i) {
          vf part = half(values + t * DIM + from + i / 2 * 2 * V, i % 2);
          for (int q = 0; q < Q; ++q) held[q][i] += weight[q] * part;
        }
      }
      for (int q = 0; q < Q; ++q) std::memcpy(sums + q * DIM + from, held[q], sizeof held[q]);
    }
  }
}

// What a task needs beside its rows.
struct Room {
  float *queries, *sums, *turned, *scores;
  static size_t floats(int dim, int longest) { return (2 * QUERIES + 1) * dim + static_cast<size_t>(QUERIES) * longest; }
  Room(float* at, int dim)
      : queries(at), sums(queries + QUERIES * dim), turned(sums + QUERIES * dim), scores(turned + dim) {}
};

using One = std::integral_constant<int, 1>;
using Two = std::integral_constant<int, 2>;

// Some of a span's queries over the tokens they see -> mixed, packed. room.scores: [QUERIES, tokens].
// Queries and sums are in the order in which halves of rows come.
template <int DIM, class W>
void attend(const Head<W>& task, int from, int count, const Room& room, const Blocks& blocks, float* mixed,
            float* probabilities) {
  const Shape& shape = task.shape;
  int dim = DIM ? DIM : shape.head_dim, group = task.group(), longest = task.start + task.width;
  auto at = [&](int d) { return DIM ? place<W>(d) : d; };
  int seen[QUERIES] = {};
  for (int q = 0; q < count; ++q) {
    seen[q] = task.start + (from + q) / group + 1;
    task.turn(task.first_row + (from + q) / group, task.head * group + (from + q) % group,
              1.0f / std::sqrt(static_cast<float>(dim)), room.turned);
    for (int d = 0; d < dim; ++d) room.queries[q * dim + at(d)] = room.turned[d];
  }
  int total = seen[count - 1];
  // The queries two by two over the rows: each(one or two, query, token, tokens, rows).
  auto tiles = [&](const W* rows, auto each) {
    for (int t = 0; t < total; t += TILE, rows += TILE * dim) {
      int tokens = std::min(TILE, total - t), q = 0;
      for (; q + 2 <= count; q += 2) each(Two{}, q, t, tokens, rows);
      if (q < count) each(One{}, q, t, tokens, rows);
    }
  };
  auto scores_of = [&](int q) { return room.scores + static_cast<int64_t>(q) * longest; };
  tiles(task.key(0), [&](auto together, int q, int t, int tokens, const W* rows) {
    score<DIM, together()>(room.queries + q * dim, rows, tokens, dim, scores_of(q) + t, longest);
  });
  float over[QUERIES];
  for (int q = 0; q < count; ++q) over[q] = softmax(scores_of(q), seen[q]);
  std::fill(room.sums, room.sums + count * dim, 0.0f);
  tiles(task.value(0), [&](auto together, int q, int t, int tokens, const W* rows) {
    int both = std::clamp(seen[q] - t, 0, tokens);  // the second may see more
    weigh<DIM, together()>(scores_of(q) + t, longest, rows, both, dim, room.sums + q * dim);
    if constexpr (together() == 2) {
      if (int rest = std::clamp(seen[q + 1] - t, 0, tokens) - both; rest > 0)
        weigh<DIM, 1>(scores_of(q + 1) + t + both, 0, rows + both * dim, rest, dim, room.sums + (q + 1) * dim);
    }
  });
  for (int q = 0; q < count; ++q) {
    int row = task.first_row + (from + q) / group, head = task.head * group + (from + q) % group, apart;
    float* out = mixed + blocks.place(row, shape.heads * shape.head_dim, apart);
    for (int d = 0; d < dim; ++d) out[static_cast<int64_t>(head * dim + d) * apart] = room.sums[q * dim + at(d)] * over[q];
    if (probabilities && row == task.work.rows - 1)
      for (int t = 0; t < longest; ++t)
        probabilities[static_cast<int64_t>(head) * longest + t] = scores_of(q)[t] * over[q];
  }
}

// Rotary, the cache's new rows, and attention, one task a span and KV head. Head by head, so that threads have
// equal parts of every span, however long.
template <class W>
void mix(const Team& team, const Shape& shape, const Work& work, const Blocks& blocks, const float* qkv, W* slab,
         bool keys_only, float* probabilities, std::vector<float>& floats, float* mixed) {
  int tasks = work.spans * shape.kv_heads, dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  auto numbered = [&](int number) {
    int span = number % work.spans, first_row = 0;
    for (int s = 0; s < span; ++s) first_row += work.widths[s];
    return Head<W>{shape, work, qkv, slab + work.slots[span] * work.slot_stride, number / work.spans, first_row,
                   work.starts[span], work.widths[span]};
  };
  for (int number = team.from(tasks); number < team.to(tasks); ++number) {
    Head<W> task = numbered(number);
    floats.resize(Room::floats(dim, task.start + task.width));
    Room room(floats.data(), dim);
    task.write(room.turned);
    bool wanted = probabilities && task.first_row + task.width == work.rows;
    // Of keys alone there is still the last row to score.
    int from = !keys_only ? 0 : wanted ? (task.width - 1) * group : task.width * group;
    for (; from < task.width * group; from += QUERIES) {
      int count = std::min(QUERIES, task.width * group - from);
      auto one = dim == 32 ? attend<32, W> : dim == 64 ? attend<64, W> : dim == 128 ? attend<128, W> : attend<0, W>;
      one(task, from, count, room, blocks, mixed, wanted ? probabilities : nullptr);
    }
  }
}

}  // namespace
