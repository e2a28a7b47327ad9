// The decoder's forward for CPUs: RMS norm, fused QKV, rotary, attention over the KV slab, fused gate/up, down.
//
// Weights are bf16 or float, a head's also integers; activations and sums are float: no bf16 instructions are
// needed, and a few rows cost what it costs to read the weights. One call runs many layers in one parallel region
// with barriers of its own, so that a small model is not paid for in calls.
// Invariant: the order of additions in a row does not depend on what other rows are there, so a token's logits
// are the same bits alone, in a batch, and in a draft that is verified.
// Knows nothing of Python; pointers and sizes are checked by the caller (model/native/stack.py).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention.hpp"
#include "drafting.hpp"
#include "product.hpp"
#include "team.hpp"
#include "vectors.hpp"

extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

namespace {

inline vf silu(vf x) { return x / (1.0f + exp_(-x)); }

template <class W>
void run_layers(const Team& team, const Shape& shape, const LayerWeights* layers, const Work& work, Scratch& shared) {
  Blocks blocks(work.rows);
  int hidden = shape.hidden, mixed_width = shape.heads * shape.head_dim;
  int qkv_width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  std::vector<float> normed(static_cast<size_t>(work.rows) * hidden), room;
  for (int index = 0; index < work.layers; ++index) {
    const LayerWeights& layer = layers[index];
    bool last = index + 1 == work.layers, keys_only = last && work.keys_only;
    norm(blocks, work.x, hidden, shape.eps, normed.data());
    Product<W> qkv{static_cast<const W*>(layer.qkv), layer.qkv_bias, hidden, qkv_width};
    multiply(team, blocks, normed.data(), qkv, [&](int row, int panel, vf left, vf right) {
      put<false>(shared.qkv.data() + static_cast<int64_t>(row) * qkv_width, qkv.bias, qkv_width, panel, left, right);
    });
    team.wait();
    mix(team, shape, work, blocks, shared.qkv.data(), static_cast<W*>(work.slab) + index * work.layer_stride,
        keys_only, last ? work.scores : nullptr, room, shared.mixed.data());
    team.wait();
    if (keys_only) break;
    Product<W> out{static_cast<const W*>(layer.out), layer.out_bias, mixed_width, hidden};
    multiply(team, blocks, shared.mixed.data(), out, [&](int row, int panel, vf left, vf right) {
      put<true>(work.x + static_cast<int64_t>(row) * hidden, out.bias, hidden, panel, left, right);
    });
    team.wait();
    norm(blocks, work.x, hidden, shape.eps, normed.data());
    // A panel holds V gates and the V ups that belong to them.
    Product<W> gate_up{static_cast<const W*>(layer.gate_up), nullptr, hidden,
                       (shape.intermediate + V - 1) / V * PANEL};
    multiply(team, blocks, normed.data(), gate_up, [&](int row, int panel, vf gate, vf up) {
      int stride, count = std::min(V, shape.intermediate - panel * V);
      float* to = shared.gated.data() + blocks.place(row, shape.intermediate, stride);
      vf gated = silu(gate) * up;
      for (int c = 0; c < count; ++c) to[static_cast<int64_t>(panel * V + c) * stride] = gated[c];
    });
    team.wait();
    Product<W> down{static_cast<const W*>(layer.down), nullptr, shape.intermediate, hidden};
    multiply(team, blocks, shared.gated.data(), down, [&](int row, int panel, vf left, vf right) {
      put<true>(work.x + static_cast<int64_t>(row) * hidden, nullptr, hidden, panel, left, right);
    });
    team.wait();
  }
}

struct Best {
  float top, sum;
  int32_t token;
};

Best best_of(const float* logits, int from, int to) {
  Best best{-INFINITY, 0.0f, from};
  float top = largest(logits + from, to - from), sum = 0.0f;
  for (int c = from; c < to; ++c)
    if (logits[c] == top) {
      best.token = c;
      break;
    }
#pragma omp simd reduction(+ : sum)
  for (int c = from; c < to; ++c) sum += exp_(logits[c] - top);
  best.top = top;
  best.sum = sum;
  return best;
}

// Final norm, LM head, and of each row the best token (of equals the first) and its probability.
template <class W>
void run_head(const Team& team, const Product<W>& head, const float* x, int rows, float eps, float* logits,
              int64_t* tokens, float* probabilities, std::vector<Best>& parts) {
  Blocks blocks(rows);
  std::vector<float> normed(static_cast<size_t>(rows) * head.inputs);
  norm(blocks, x, head.inputs, eps, normed.data());
  multiply(team, blocks, normed.data(), head, [&](int row, int panel, vf left, vf right) {
    put<false>(logits + static_cast<int64_t>(row) * head.outputs, nullptr, head.outputs, panel, left, right);
  });
  if (!tokens) return;
  // Each member has just written these columns itself.
  int from = std::min(team.from(head.panels()) * PANEL, head.outputs);
  int to = std::min(team.to(head.panels()) * PANEL, head.outputs);
  for (int row = 0; row < rows; ++row)
    parts[static_cast<size_t>(row) * team.size + team.id] =
        best_of(logits + static_cast<int64_t>(row) * head.outputs, from, to);
  team.wait();
  if (team.id) return;
  for (int row = 0; row < rows; ++row) {
    const Best* part = parts.data() + static_cast<size_t>(row) * team.size;
    Best best = part[0];
    for (int i = 1; i < team.size; ++i)
      if (part[i].top > best.top) best = part[i];
    float sum = 0;
    for (int i = 0; i < team.size; ++i)
      if (part[i].sum > 0) sum += part[i].sum * exp_(part[i].top - best.top);
    tokens[row] = best.token;
    probabilities[row] = 1.0f / sum;
  }
}

// Calls with the head as what it is: of integers, bf16 or float, by the bytes of a weight.
template <class F>
void with_head(const void* weights, const float* scales, int inputs, int outputs, int size, F&& run) {
  if (size == 1)
    run(Product<int8_t>{static_cast<const int8_t*>(weights), nullptr, inputs, outputs, scales});
  else if (size == 2)
    run(Product<bf16>{static_cast<const bf16*>(weights), nullptr, inputs, outputs});
  else
    run(Product<float>{static_cast<const float*>(weights), nullptr, inputs, outputs});
}

template <class W>
void run_draft(const Team& team, const Shape& shape, const Draft& draft, Round& round, Scratch& shared,
               std::vector<Best>& parts) {
  for (int step = 0;; ++step) {
    if (!team.id) round.begin<W>(step);
    team.wait();
    run_layers<W>(team, shape, draft.trunk, round.trunk, shared);
    if (!team.id) round.keep();
    team.wait();
    if (!round.rows()) return;
    run_layers<W>(team, shape, draft.twig, round.twig, shared);
    if (!team.id) round.gather();
    team.wait();
    with_head(draft.head, draft.scales, shape.hidden, draft.outputs, draft.head_bytes, [&](const auto& head) {
      run_head(team, head, round.states(), round.rows(), shape.eps, round.logits.get(), round.best.data(),
               round.sure.data(), parts);
    });
    if (!team.id) round.propose();
  }
}

// Elements of 8, 16 or 32 bits, moved and not read.
template <class T>
void pack(const T* weights, int inputs, int outputs, int panel, T* to) {
  for (int pair = 0; pair < inputs / 2; ++pair)
    for (int vector = 0; vector < 2; ++vector)
      for (int lane = 0; lane < V; ++lane)
        for (int odd = 0; odd < 2; ++odd) {
          int column = panel * PANEL + vector * V + lane;
          int at = sizeof(T) == 1   ? 4 * lane + 2 * odd + vector
                   : sizeof(T) == 2 ? vector * PANEL + 2 * lane + odd
                                    : vector * PANEL + odd * V + lane;
          to[pair * 2 * PANEL + at] =
              column < outputs ? weights[static_cast<int64_t>(2 * pair + odd) * outputs + column] : T{};
        }
}

}  // namespace

extern "C" {

int32_t twig_lanes() { return V; }

// weights: [inputs, outputs] of elements of `size` bytes; to: panels of PANEL columns, the last filled up with 0.
void twig_pack(const void* weights, int32_t inputs, int32_t outputs, int32_t size, int32_t threads, void* to) {
  int panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads)
  for (int panel = 0; panel < panels; ++panel) {
    int64_t at = static_cast<int64_t>(panel) * inputs * PANEL;
    if (size == 1)
      pack(static_cast<const uint8_t*>(weights), inputs, outputs, panel, static_cast<uint8_t*>(to) + at);
    else if (size == 2)
      pack(static_cast<const uint16_t*>(weights), inputs, outputs, panel, static_cast<uint16_t*>(to) + at);
    else
      pack(static_cast<const uint32_t*>(weights), inputs, outputs, panel, static_cast<uint32_t*>(to) + at);
  }
}

void twig_layers(const Shape* shape, const LayerWeights* layers, const Work* work, int32_t is_bf16) {
  Barrier barrier;
  Scratch shared(*shape, work->rows);
#pragma omp parallel num_threads(shape->threads)
  {
    Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    if (is_bf16)
      run_layers<bf16>(team, *shape, layers, *work, shared);
    else
      run_layers<float>(team, *shape, layers, *work, shared);
  }
}

// Sets counts, drafts, states, readers and read; rows > 0.
void twig_draft(const Shape* shape, const Draft* draft, int32_t is_bf16) {
  Barrier barrier;
  Round round(*shape, *draft);
  Scratch shared(*shape, round.most_tokens());
  std::vector<Best> parts(static_cast<size_t>(draft->rows) * shape->threads);
  std::fill(draft->counts, draft->counts + draft->rows, 0);
  *draft->read = 0;
#pragma omp parallel num_threads(shape->threads)
  {
    Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    if (is_bf16)
      run_draft<bf16>(team, *shape, *draft, round, shared, parts);
    else
      run_draft<float>(team, *shape, *draft, round, shared, parts);
  }
}

// logits: [rows, outputs]. tokens, probabilities: [rows] or null. size: bytes of a weight; scales: see Product.
void twig_head(const void* weights, const float* scales, int32_t inputs, int32_t outputs, int32_t size,
               int32_t threads, float eps, const float* x, int32_t rows, float* logits, int64_t* tokens,
               float* probabilities) {
  Barrier barrier;
  std::vector<Best> parts(static_cast<size_t>(rows) * threads);
#pragma omp parallel num_threads(threads)
  {
    Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    with_head(weights, scales, inputs, outputs, size, [&](const auto& head) {
      run_head(team, head, x, rows, eps, logits, tokens, probabilities, parts);
    });
  }
}

// Bytes read in one pass of all threads, for measuring what the memory gives; returns something that depends on all.
uint64_t twig_read(const uint64_t* data, int64_t words, int32_t threads) {
  uint64_t sum = 0;
  constexpr int64_t PART = 1 << 16, AHEAD = PREFETCH_BYTES / 8;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
  for (int64_t from = 0; from < words; from += PART)
    for (int64_t line = from, end = std::min(from + PART, words); line < end; line += 8) {
      __builtin_prefetch(data + line + AHEAD);  // as the products do it
      for (int64_t i = line, stop = std::min(line + 8, end); i < stop; ++i) sum += data[i];
    }
  return sum;
}
}
