// A round's drafts in one call: trunk, twig and the twig's head token after token, with ever fewer rows.
// Invariant: what a row drafts does not depend on what other rows are there (see kernels.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "attention.hpp"

namespace {

struct Draft {
  const LayerWeights *trunk, *twig;
  void *trunk_slab, *twig_slab;  // of the first layer of each
  int64_t layer_stride, slot_stride, head_stride;
  const void* embedding;  // [vocabulary, hidden], of the layers' type
  const float* rope;      // [positions, head_dim]
  const void* head;       // and its scales, columns, bytes of a weight: see twig_head
  const float* scales;
  double threshold;
  int32_t outputs, head_bytes, trunk_layers, twig_layers, rows, most;
  // By row: its slot, what that holds, the rotary position of the pending token, how many tokens the first step
  // reads (the pending one last), how many drafts at most, where its ends of sequence end in `eos`.
  const int32_t *slots, *lengths, *positions, *widths, *budgets, *eos_ends, *eos;
  const int64_t* tokens;         // of the first step, row after row
  const float* const* vectors;   // by row: what stands for its pending token, or null
  // What comes of it: drafts [rows, most] and how many, the trunk's states in the order of reading, whose they are.
  int64_t* drafts;
  int32_t* counts;
  float* states;
  int32_t *readers, *read;
};

// The rows that still read, and what they read: one member of the team keeps it, the others wait for it.
class Round {
  const Shape& shape;
  const Draft& draft;
  std::vector<int> going, ends;
  std::vector<bool> done;  // by row: drafts no more
  std::vector<int32_t> slots, starts, widths;
  std::vector<float> x, cis;

  Work work(void* slab, int layers) {
    return {x.data(), cis.data(), slab, draft.layer_stride, draft.slot_stride, draft.head_stride,
            slots.data(), starts.data(), widths.data(), nullptr, layers, ends.empty() ? 0 : ends.back() + 1,
            static_cast<int32_t>(going.size()), 0};
  }
  void find_ends() {
    ends.clear();
    for (int width : widths) ends.push_back((ends.empty() ? -1 : ends.back()) + width);
  }
  bool is_last(int row, int64_t token) const {
    for (int i = row ? draft.eos_ends[row - 1] : 0; i < draft.eos_ends[row]; ++i)
      if (draft.eos[i] == token) return true;
    return false;
  }
  void copy(std::vector<float>& rows, int width, int from, int to) const {
    if (from != to) std::memcpy(&rows[int64_t{to} * width], &rows[int64_t{from} * width], sizeof(float) * width);
  }

 public:
  Work trunk, twig;
  std::unique_ptr<float[]> logits;  // not filled: a large vocabulary's would cost milliseconds a round
  std::vector<float> sure;
  std::vector<int64_t> best;

  Round(const Shape& shape, const Draft& draft)
      : shape(shape), draft(draft), logits(new float[int64_t{draft.rows} * draft.outputs]) {
    int tokens = 0;
    for (int row = 0; row < draft.rows; ++row) {
      going.push_back(row), done.push_back(draft.budgets[row] == 0);
      tokens += draft.widths[row];
    }
    x.resize(int64_t{tokens} * shape.hidden);
    cis.resize(int64_t{tokens} * shape.head_dim);
    sure.resize(draft.rows);
    best.resize(draft.rows);
  }
  int64_t most_tokens() const { return static_cast<int64_t>(cis.size()) / shape.head_dim; }
  int rows() const { return static_cast<int>(going.size()); }
  float* states() { return x.data(); }

  // What the trunk reads in this step: at first all that a row brings, then its newest draft.
  template <class W>
  void begin(int step) {
    slots.clear(), starts.clear(), widths.clear();
    const int64_t* token = draft.tokens;
    int at = 0;
    for (int row : going) {
      int width = step ? 1 : draft.widths[row], behind = step + 1 - width;
      const int64_t* read = step ? draft.drafts + int64_t{row} * draft.most + step - 1 : token;
      for (int i = 0; i < width; ++i, ++at) {
        const W* embedded = static_cast<const W*>(draft.embedding) + read[i] * shape.hidden;
        float* state = &x[int64_t{at} * shape.hidden];
        if (!step && i + 1 == width && draft.vectors[row])
          std::memcpy(state, draft.vectors[row], sizeof(float) * shape.hidden);
        else
          for (int d = 0; d < shape.hidden; ++d) state[d] = wide(embedded[d]);
        std::memcpy(&cis[int64_t{at} * shape.head_dim],
                    draft.rope + int64_t{draft.positions[row] + behind + i} * shape.head_dim,
                    sizeof(float) * shape.head_dim);
      }
      token += width;
      slots.push_back(draft.slots[row]), starts.push_back(draft.lengths[row] + behind), widths.push_back(width);
    }
    find_ends();
    trunk = work(draft.trunk_slab, draft.trunk_layers);
  }

  // Keeps the trunk's states; the twig reads on for the rows that still draft.
  void keep() {
    size_t kept = 0;
    int to = 0;
    for (size_t i = 0; i < going.size(); ++i) {
      int row = going[i], width = widths[i], from = ends[i] + 1 - width;
      std::memcpy(draft.states + int64_t{*draft.read} * shape.hidden, &x[int64_t{ends[i]} * shape.hidden],
                  sizeof(float) * shape.hidden);
      draft.readers[(*draft.read)++] = row;
      if (done[row]) continue;
      for (int t = 0; t < width; ++t, ++to) copy(x, shape.hidden, from + t, to), copy(cis, shape.head_dim, from + t, to);
      going[kept] = row, slots[kept] = slots[i], starts[kept] = starts[i], widths[kept] = width;
      ++kept;
    }
    going.resize(kept), slots.resize(kept), starts.resize(kept), widths.resize(kept);
    find_ends();
    twig = work(draft.twig_slab, draft.twig_layers);
  }

  // The last state of each row, one behind the other.
  void gather() {
    for (size_t i = 0; i < going.size(); ++i) copy(x, shape.hidden, ends[i], static_cast<int>(i));
  }

  void propose() {
    for (size_t i = 0; i < going.size(); ++i) {
      int row = going[i];
      draft.drafts[int64_t{row} * draft.most + draft.counts[row]++] = best[i];
      done[row] = draft.counts[row] == draft.budgets[row] || is_last(row, best[i]) || sure[i] < draft.threshold;
    }
  }
};

}  // namespace
