// Products of a few rows with packed weights, and the norm before them.
// Invariant: a sum is over k from first to last, whatever rows share the tile.
#pragma once

#include "team.hpp"
#include "vectors.hpp"

namespace {

constexpr int PREFETCH_BYTES = 4096;    // ahead in the stream of weights
constexpr int GROUP_BYTES = 128 << 10;  // of panels that many blocks of rows meet in turn

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

// Panels: for each pair of rows k of the weights, two vectors of columns; a bf16 pair shares 32 bits, so that a
// row of the pair is one `half`. Integers of 8 bits have all four of a lane in its 32 bits, and a scale a column.

// ROWS x (PANELS * PANEL) sums over `pairs` pairs of k. Several panels at once where few rows leave the
// multipliers waiting for their own results. A function of its own: among its caller's values sums were spilled.
template <int ROWS, int PANELS, class W>
[[gnu::noinline]] void tile(const float* a, const W* weights, int64_t panel_size, int pairs,
                            vf (&out)[ROWS][2 * PANELS]) {
  vf sums[ROWS][2 * PANELS];  // not `out`, which might be the inputs' memory for all the compiler knows
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < 2 * PANELS; ++c) sums[r][c] = vf{};
  // At their ends the panels are followed by those behind all of them.
  const int whole = std::max(0, pairs - PREFETCH_BYTES / static_cast<int>(2 * PANEL * sizeof(W)));
  const int64_t others = (PANELS - 1) * panel_size * static_cast<int64_t>(sizeof(W));
  for (int p = 0; p < pairs; ++p) {
    int64_t ahead = PREFETCH_BYTES + (p < whole ? 0 : others);
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel) {
      const W* at = weights + panel * panel_size + static_cast<int64_t>(p) * 2 * PANEL;
      for (unsigned line = 0; line < 2 * PANEL * sizeof(W); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead + line);
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
#if defined(__x86_64__)
        // Or the compiler keeps the pair for both halves and spills sums: 65 GFLOP/s instead of 95 at 6 rows.
        asm volatile("" : "+r"(at));
#endif
        vf left, right;
        both<ROWS>(at, odd, left, right);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
          vf in = spread(a[(2 * p + odd) * ROWS + r]);
          sums[r][2 * panel] += left * in;
          sums[r][2 * panel + 1] += right * in;
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < 2 * PANELS; ++c) out[r][c] = sums[r][c];
}

template <class W>
struct Product {
  const W* weights;   // panels
  const float* bias;  // or null
  int inputs, outputs;
  const float* scales = nullptr;  // of integers: of each column, the last panel filled up
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
    for (int p = 0; p < PANELS; ++p) {
      vf left = sums[r][2 * p], right = sums[r][2 * p + 1];
      if constexpr (std::is_same_v<W, int8_t>) {
        const float* scales = product.scales + static_cast<int64_t>(panel + p) * PANEL;
        left *= load(scales);
        right *= load(scales + V);
      }
      sink(row + r, panel + p, left, right);
    }
}

template <int ROWS, class W, class Sink>
void block_times_panels(int rows, const float* a, const Product<W>& product, int row, int panel, int end, Sink&& sink) {
  if constexpr (ROWS > 0) {
    if (rows < ROWS) return block_times_panels<ROWS - 1, W>(rows, a, product, row, panel, end, sink);
    constexpr int TOGETHER = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;
    for (; panel + TOGETHER <= end; panel += TOGETHER)
      rows_times_panels<ROWS, TOGETHER>(a, product, row, panel, sink);
    for (; panel < end; ++panel) rows_times_panels<ROWS, 1>(a, product, row, panel, sink);
  }
}

// This member's panels of a product of all rows; `a` is packed.
template <class W, class Sink>
void multiply(const Team& team, const Blocks& blocks, const float* a, const Product<W>& product, Sink&& sink) {
  int first = team.from(product.panels()), end = team.to(product.panels());
  // A block of rows meets several panels while it is in the first cache, and they stay in the second.
  int fitting = static_cast<int>(GROUP_BYTES / (product.panel_size() * sizeof(W)));
  int together = blocks.count == 1 ? end - first : std::max(2, fitting);
  for (int panel = first; panel < end; panel += together)
    for (int block = 0; block < blocks.count; ++block) {
      int row = blocks.first(block), stop = std::min(panel + together, end);
      const float* packed = a + static_cast<int64_t>(row) * product.inputs;
      block_times_panels<MAX_ROWS, W>(blocks.size(block), packed, product, row, panel, stop, sink);
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

}  // namespace
