// The decoder's forward for CPUs: RMS norm, fused QKV, rotary, attention over the KV slab, fused gate/up, down.
//
// Weights are bf16 or float, activations and sums are float: no bf16 instructions are needed, and a few rows cost
// what it costs to read the weights. One call runs many layers in one parallel region with barriers of its own,
// so that a small model is not paid for in calls.
// Invariant: the order of additions in a row does not depend on what other rows are there, so a token's logits
// are the same bits alone, in a batch, and in a draft that is verified.
// Knows nothing of Python; pointers and sizes are checked by the caller (model/native/stack.py).

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

namespace {

#if defined(__AVX512F__)
constexpr int V = 16;         // floats of a vector
constexpr int MAX_ROWS = 12;  // rows of a tile: 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int V = 8;
constexpr int MAX_ROWS = 5;
#else
constexpr int V = 4;
constexpr int MAX_ROWS = 8;
#endif
constexpr int PANEL = 2 * V;            // columns that are stored together
constexpr int PREFETCH_BYTES = 2048;    // ahead in the stream of weights
constexpr int SPINS_BEFORE_YIELD = 1000;
constexpr int QUERIES = 8;              // rows that share one walk over the keys

typedef float vf __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
struct bf16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bf16& out) {  // to nearest, ties to even
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  out.bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  if (x != x) out.bits = 0x7fc0;
}

// Cephes' exp: relative error 2e-7, and vectorised by the compiler.
inline float exp_(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest integer
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

class Barrier {
  std::atomic<int> waiting{0}, phase{0};

 public:
  void wait(int threads) {
    if (threads == 1) return;
    int now = phase.load(std::memory_order_relaxed);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      waiting.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == now; ++spins) {
      if (spins >= SPINS_BEFORE_YIELD) sched_yield();  // somebody else may have the core we wait for
#if defined(__x86_64__)
      else __builtin_ia32_pause();
#endif
    }
  }
};

struct Team {
  int id, size;
  Barrier* barrier;
  void wait() const { barrier->wait(size); }
  // This member's share of so many things.
  int from(int things) const { return static_cast<int>(static_cast<int64_t>(things) * id / size); }
  int to(int things) const { return static_cast<int>(static_cast<int64_t>(things) * (id + 1) / size); }
};

// Rows in blocks of nearly equal size, at most MAX_ROWS. Inputs of products are packed block by block,
// element k of row r of a block of n rows at [k * n + r].
struct Blocks {
  int rows, count;
  explicit Blocks(int rows) : rows(rows), count((rows + MAX_ROWS - 1) / MAX_ROWS) {}
  int first(int block) const { return static_cast<int>(static_cast<int64_t>(rows) * block / count); }
  int size(int block) const { return first(block + 1) - first(block); }
  int of(int row) const {
    int block = static_cast<int>(static_cast<int64_t>(row) * count / rows);
    while (first(block + 1) <= row) ++block;
    while (first(block) > row) --block;
    return block;
  }
  // Where element 0 of a row is, and how far element 1 is from it.
  int64_t place(int row, int64_t width, int& stride) const {
    int block = of(row);
    stride = size(block);
    return first(block) * width + (row - first(block));
  }
};

// Panels: for each pair of rows k of the weights, two vectors of columns; a bf16 pair shares 32 bits.
inline void load_pair(const bf16* at, vf& even, vf& odd) {
  vu both;
  std::memcpy(&both, at, sizeof both);
  even = reinterpret_cast<vf>(both << 16);
  odd = reinterpret_cast<vf>(both & 0xffff0000u);
}
inline void load_pair(const float* at, vf& even, vf& odd) {
  std::memcpy(&even, at, sizeof even);
  std::memcpy(&odd, at + V, sizeof odd);
}

// ROWS x (PANELS * PANEL) sums over `pairs` pairs of k. Several panels at once where few rows leave the
// multipliers waiting for their own results.
template <int ROWS, int PANELS, class W>
inline void tile(const float* a, const W* weights, int64_t panel_size, int pairs, vf (&sums)[ROWS][2 * PANELS]) {
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 2 * PANELS; ++c) sums[r][c] = vf{};
  for (int p = 0; p < pairs; ++p) {
    for (int panel = 0; panel < PANELS; ++panel) {
      const W* at = weights + panel * panel_size + static_cast<int64_t>(p) * 2 * PANEL;
      vf even[2], odd[2];
      load_pair(at, even[0], odd[0]);
      load_pair(at + PANEL, even[1], odd[1]);
      for (unsigned line = 0; line < 2 * PANEL * sizeof(W); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(at) + PREFETCH_BYTES + line);
      for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < 2; ++c) {
          sums[r][2 * panel + c] += even[c] * a[2 * p * ROWS + r];
          sums[r][2 * panel + c] += odd[c] * a[(2 * p + 1) * ROWS + r];
        }
    }
  }
}

template <class W>
struct Product {
  const W* weights;   // panels
  const float* bias;  // or null
  int inputs, outputs;
  int panels() const { return (outputs + PANEL - 1) / PANEL; }
  int64_t panel_size() const { return static_cast<int64_t>(inputs) * PANEL; }
};

// Takes the sums of one row and panel: (row, panel, two vectors).
template <int ROWS, int PANELS, class W, class Sink>
void rows_times_panels(const float* a, const Product<W>& product, int row, int panel, Sink&& sink) {
  vf sums[ROWS][2 * PANELS];
  int64_t size = product.panel_size();
  tile<ROWS, PANELS, W>(a, product.weights + panel * size, size, product.inputs / 2, sums);
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PANELS; ++p) sink(row + r, panel + p, sums[r][2 * p], sums[r][2 * p + 1]);
}

template <int ROWS, class W, class Sink>
void block_times_panel(int rows, const float* a, const Product<W>& product, int row, int panel, Sink&& sink) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return rows_times_panels<ROWS, 1>(a, product, row, panel, sink);
    block_times_panel<ROWS - 1, W>(rows, a, product, row, panel, sink);
  }
}

// This member's panels of a product of all rows; `a` is packed.
template <class W, class Sink>
void multiply(const Team& team, const Blocks& blocks, const float* a, const Product<W>& product, Sink&& sink) {
  int panel = team.from(product.panels()), end = team.to(product.panels());
  if (blocks.rows == 1)
    for (; panel + 4 <= end; panel += 4) rows_times_panels<1, 4>(a, product, 0, panel, sink);
  if (blocks.rows == 2)
    for (; panel + 2 <= end; panel += 2) rows_times_panels<2, 2>(a, product, 0, panel, sink);
  for (; panel < end; ++panel)
    for (int block = 0; block < blocks.count; ++block) {
      int row = blocks.first(block);
      const float* packed = a + static_cast<int64_t>(row) * product.inputs;
      block_times_panel<MAX_ROWS, W>(blocks.size(block), packed, product, row, panel, sink);
    }
}

// Stores or adds the columns of a panel that exist.
template <bool ADD>
inline void put(float* row, const float* bias, int outputs, int panel, vf left, vf right) {
  float sums[PANEL];
  std::memcpy(sums, &left, sizeof left);
  std::memcpy(sums + V, &right, sizeof right);
  int first = panel * PANEL, count = std::min(PANEL, outputs - first);
  for (int c = 0; c < count; ++c) {
    float value = bias ? sums[c] + bias[first + c] : sums[c];
    row[first + c] = ADD ? row[first + c] + value : value;
  }
}

// x [rows, width] -> normed and packed. Every member makes its own copy: cheaper than one more barrier.
void norm(const Blocks& blocks, const float* x, int width, float eps, float* packed) {
  for (int row = 0; row < blocks.rows; ++row) {
    const float* in = x + static_cast<int64_t>(row) * width;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int k = 0; k < width; ++k) squares += in[k] * in[k];
    float scale = 1.0f / std::sqrt(squares / width + eps);
    int stride;
    float* out = packed + blocks.place(row, width, stride);
    if (stride == 1)
      for (int k = 0; k < width; ++k) out[k] = in[k] * scale;
    else
      for (int k = 0; k < width; ++k) out[static_cast<int64_t>(k) * stride] = in[k] * scale;
  }
}

inline void rotate(const float* in, const float* cis, int head_dim, float scale, float* out) {
  for (int i = 0; i < head_dim; i += 2) {
    float re = in[i] * scale, im = in[i + 1] * scale;
    out[i] = re * cis[i] - im * cis[i + 1];
    out[i + 1] = re * cis[i + 1] + im * cis[i];
  }
}

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
  int64_t layer_stride, slot_stride, token_stride;
  const int32_t *slots, *starts, *widths;
  float* scores;
  int32_t layers, rows, spans, keys_only;  // keys_only: the last layer's output is not wanted
};

struct Scratch {
  std::vector<float> qkv, mixed, gated;
};

template <class W>
struct Head {  // one KV head's task in one span
  const Shape& shape;
  const Work& work;
  const float* qkv;
  W* rows;  // the slot's first token in the slab
  int head, first_row, start, width;

  int group() const { return shape.heads / shape.kv_heads; }
  int qkv_width() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }
  W* key(int token) const { return rows + token * work.token_stride + head * shape.head_dim; }
  W* value(int token) const { return key(token) + shape.kv_heads * shape.head_dim; }

  void write(float* turned) const {
    int dim = shape.head_dim;
    for (int i = 0; i < width; ++i) {
      const float* in = qkv + static_cast<int64_t>(first_row + i) * qkv_width() + (shape.heads + head) * dim;
      rotate(in, work.cis + static_cast<int64_t>(first_row + i) * dim, dim, 1.0f, turned);
      W *key_out = key(start + i), *value_out = value(start + i);
      for (int d = 0; d < dim; ++d) narrow(turned[d], key_out[d]);
      for (int d = 0; d < dim; ++d) narrow(in[shape.kv_heads * dim + d], value_out[d]);
    }
  }
};

template <int DIM, class W>
inline float dot(const float* a, const W* b, int dim) {
  float sum = 0;
  int n = DIM ? DIM : dim;
#pragma omp simd reduction(+ : sum)
  for (int d = 0; d < n; ++d) sum += a[d] * wide(b[d]);
  return sum;
}

inline float largest(const float* values, int count) {
  float top = -INFINITY;
  int i = 0;
  if (count >= V) {
    vf many = vf{} - INFINITY, some;
    for (; i + V <= count; i += V) {
      std::memcpy(&some, values + i, sizeof some);
      many = some > many ? some : many;
    }
    for (int lane = 0; lane < V; ++lane) top = many[lane] > top ? many[lane] : top;
  }
  for (; i < count; ++i) top = values[i] > top ? values[i] : top;
  return top;
}

inline float softmax(float* scores, int count) {  // to exponentials; returns one over their sum
  float top = largest(scores, count), sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int t = 0; t < count; ++t) sum += scores[t] = exp_(scores[t] - top);
  return 1.0f / sum;
}

// Some of a span's queries over the tokens they see -> mixed, packed. scores: [QUERIES, tokens] of scratch.
template <int DIM, class W>
void attend(const Head<W>& task, int from, int count, const float* queries, float* scores, float* sums,
            const Blocks& blocks, float* mixed, float* probabilities) {
  const Shape& shape = task.shape;
  int dim = DIM ? DIM : shape.head_dim, group = task.group(), longest = task.start + task.width;
  int seen[QUERIES] = {};
  for (int q = 0; q < count; ++q) seen[q] = task.start + (from + q) / group + 1;
  for (int t = 0; t < seen[count - 1]; ++t) {
    const W* key = task.key(t);
    for (int q = 0; q < count; ++q)
      if (t < seen[q]) scores[static_cast<int64_t>(q) * longest + t] = dot<DIM>(queries + q * dim, key, dim);
  }
  float over[QUERIES];
  for (int q = 0; q < count; ++q) over[q] = softmax(scores + static_cast<int64_t>(q) * longest, seen[q]);
  std::fill(sums, sums + count * dim, 0.0f);
  for (int t = 0; t < seen[count - 1]; ++t) {
    const W* value = task.value(t);
    for (int q = 0; q < count; ++q) {
      if (t >= seen[q]) continue;
      float weight = scores[static_cast<int64_t>(q) * longest + t];
      float* sum = sums + q * dim;
      int n = DIM ? DIM : dim;
#pragma omp simd
      for (int d = 0; d < n; ++d) sum[d] += weight * wide(value[d]);
    }
  }
  for (int q = 0; q < count; ++q) {
    int row = task.first_row + (from + q) / group, head = task.head * group + (from + q) % group, stride;
    float* out = mixed + blocks.place(row, shape.heads * shape.head_dim, stride);
    for (int d = 0; d < dim; ++d) out[static_cast<int64_t>(head * dim + d) * stride] = sums[q * dim + d] * over[q];
    if (probabilities && row == task.work.rows - 1)
      for (int t = 0; t < longest; ++t)
        probabilities[static_cast<int64_t>(head) * longest + t] = scores[static_cast<int64_t>(q) * longest + t] * over[q];
  }
}

// Rotary, the cache's new rows, and attention, one task a span and KV head.
template <class W>
void mix(const Team& team, const Shape& shape, const Work& work, const Blocks& blocks, const float* qkv, W* slab,
         bool keys_only, float* probabilities, std::vector<float>& room, float* mixed) {
  int tasks = work.spans * shape.kv_heads, dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (int number = team.from(tasks); number < team.to(tasks); ++number) {
    int span = number / shape.kv_heads, first_row = 0;
    for (int s = 0; s < span; ++s) first_row += work.widths[s];
    Head<W> task{shape,     work,
                 qkv,       slab + work.slots[span] * work.slot_stride,
                 number % shape.kv_heads, first_row,
                 work.starts[span],       work.widths[span]};
    int longest = task.start + task.width;
    room.resize(static_cast<size_t>(QUERIES) * (2 * dim + longest) + dim);
    float *queries = room.data(), *sums = queries + QUERIES * dim, *scores = sums + QUERIES * dim;
    task.write(scores);
    bool wanted = probabilities && first_row + task.width == work.rows;
    // Of keys alone there is still the last row to score.
    int from = !keys_only ? 0 : wanted ? (task.width - 1) * group : task.width * group;
    for (; from < task.width * group; from += QUERIES) {
      int count = std::min(QUERIES, task.width * group - from);
      for (int q = 0; q < count; ++q) {
        int64_t row = first_row + (from + q) / group;
        const float* in = qkv + row * task.qkv_width() + (task.head * group + (from + q) % group) * dim;
        rotate(in, work.cis + row * dim, dim, 1.0f / std::sqrt(static_cast<float>(dim)), queries + q * dim);
      }
      auto one = dim == 64 ? attend<64, W> : dim == 128 ? attend<128, W> : attend<0, W>;
      one(task, from, count, queries, scores, sums, blocks, mixed, wanted ? probabilities : nullptr);
    }
  }
}

inline float silu(float x) { return x / (1.0f + exp_(-x)); }

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
      for (int c = 0; c < count; ++c) to[static_cast<int64_t>(panel * V + c) * stride] = silu(gate[c]) * up[c];
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

// Elements of 16 or 32 bits, moved and not read.
template <class T>
void pack(const T* weights, int inputs, int outputs, int panel, T* to) {
  constexpr bool paired = sizeof(T) == 2;  // a pair of rows shares 32 bits
  for (int pair = 0; pair < inputs / 2; ++pair)
    for (int vector = 0; vector < 2; ++vector)
      for (int lane = 0; lane < V; ++lane)
        for (int odd = 0; odd < 2; ++odd) {
          int column = panel * PANEL + vector * V + lane;
          T value = column < outputs ? weights[static_cast<int64_t>(2 * pair + odd) * outputs + column] : T{};
          to[pair * 2 * PANEL + vector * PANEL + (paired ? 2 * lane + odd : odd * V + lane)] = value;
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
    if (size == 2)
      pack(static_cast<const uint16_t*>(weights), inputs, outputs, panel, static_cast<uint16_t*>(to) + at);
    else
      pack(static_cast<const uint32_t*>(weights), inputs, outputs, panel, static_cast<uint32_t*>(to) + at);
  }
}

void twig_layers(const Shape* shape, const LayerWeights* layers, const Work* work, int32_t is_bf16) {
  Barrier barrier;
  Scratch shared;
  size_t rows = static_cast<size_t>(work->rows);
  shared.qkv.resize(rows * (shape->heads + 2 * shape->kv_heads) * shape->head_dim);
  shared.mixed.resize(rows * shape->heads * shape->head_dim);
  shared.gated.resize(rows * shape->intermediate);
#pragma omp parallel num_threads(shape->threads)
  {
    Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    if (is_bf16)
      run_layers<bf16>(team, *shape, layers, *work, shared);
    else
      run_layers<float>(team, *shape, layers, *work, shared);
  }
}

// logits: [rows, outputs]. tokens, probabilities: [rows] or null.
void twig_head(const void* weights, int32_t inputs, int32_t outputs, int32_t is_bf16, int32_t threads, float eps,
               const float* x, int32_t rows, float* logits, int64_t* tokens, float* probabilities) {
  Barrier barrier;
  std::vector<Best> parts(static_cast<size_t>(rows) * threads);
#pragma omp parallel num_threads(threads)
  {
    Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    if (is_bf16)
      run_head(team, Product<bf16>{static_cast<const bf16*>(weights), nullptr, inputs, outputs}, x, rows, eps, logits,
               tokens, probabilities, parts);
    else
      run_head(team, Product<float>{static_cast<const float*>(weights), nullptr, inputs, outputs}, x, rows, eps,
               logits, tokens, probabilities, parts);
  }
}

// Bytes read in one pass of all threads, for measuring what the memory gives; returns something that depends on all.
uint64_t twig_read(const uint64_t* data, int64_t words, int32_t threads) {
  uint64_t sum = 0;
#pragma omp parallel for simd num_threads(threads) reduction(+ : sum)
  for (int64_t i = 0; i < words; ++i) sum += data[i];
  return sum;
}
}
