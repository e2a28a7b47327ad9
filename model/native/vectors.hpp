// Vectors of floats, the three forms of a weight, and exp. Included by one translation unit only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);  // halves and quarters of 32 bits are told apart by it

#if defined(__AVX512F__)
constexpr int V = 16;         // floats of a vector
constexpr int MAX_ROWS = 12;  // rows of a tile: 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int V = 8;
constexpr int MAX_ROWS = 6;   // 6 x 2 accumulators of 16 registers, two of weights, one of inputs
#else
constexpr int V = 4;
constexpr int MAX_ROWS = 8;
#endif
constexpr int PANEL = 2 * V;  // columns that are stored together

typedef float vf __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
typedef int32_t vi __attribute__((vector_size(4 * V)));
const vu UPPER = vu{} + 0xffff0000u;
struct bf16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

// V neighbours.
inline vf load(const float* at) {
  vf x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

// Half of 2V neighbours: of bf16 every second one, which is one shift or mask where V neighbours take five shuffles.
inline vf half(const bf16* at, int odd) {
  vu both;
  std::memcpy(&both, at, sizeof both);
  return odd ? reinterpret_cast<vf>(both & 0xffff0000u) : reinterpret_cast<vf>(both << 16);
}
inline vf half(const float* at, int odd) { return load(at + odd * V); }
// Two vectors of one row of a pair of rows: see Panels in product.hpp.
template <int ROWS, class W>
inline void both(const W* at, int odd, vf& left, vf& right) {
  left = half(at, odd);
  right = half(at + PANEL, odd);
#if defined(__AVX2__) && !defined(__AVX512F__)
  // With the mask in a register six rows need all sixteen, and GCC spills five sums: 60 GFLOP/s instead of 85.
  if (ROWS == MAX_ROWS && std::is_same_v<W, bf16> && odd) {
    left = load(reinterpret_cast<const float*>(at));
    right = load(reinterpret_cast<const float*>(at + PANEL));
    asm("vpand %1, %0, %0" : "+x"(left) : "m"(UPPER));
    asm("vpand %1, %0, %0" : "+x"(right) : "m"(UPPER));
  }
#endif
}
template <int ROWS>
inline void both(const int8_t* at, int odd, vf& left, vf& right) {
  vi four;  // of each lane left and right of the even row, then of the odd one
  std::memcpy(&four, at, sizeof four);
  left = __builtin_convertvector(four << (odd ? 8 : 24) >> 24, vf);
  right = __builtin_convertvector(four << (odd ? 0 : 16) >> 24, vf);
}
// Where element i is in what the halves give.
template <class T>
inline int place(int i) {
  return sizeof(T) == 4 ? i : i / (2 * V) * (2 * V) + i % 2 * V + i % (2 * V) / 2;
}

template <size_t... LANE>
inline vf spread(float x, std::index_sequence<LANE...>) {
  return vf{((void)LANE, x)...};
}
inline vf spread(float x) { return spread(x, std::make_index_sequence<V>()); }

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bf16& out) {  // to nearest, ties to even
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  out.bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  if (x != x) out.bits = 0x7fc0;
}

// Cephes' exp: relative error 2e-7, and vectorised by the compiler.
template <class F>
inline F exp_(F x) {  // of a float or a vector
  if constexpr (std::is_same_v<F, float>) {
    x = std::min(std::max(x, -87.0f), 88.0f);
  } else {
    x = x < -87.0f ? F{} - 87.0f : x;
    x = x > 88.0f ? F{} + 88.0f : x;
  }
  F n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest integer
  F r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f;
  p = p + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  if constexpr (std::is_same_v<F, float>)
    return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
  else
    return p * reinterpret_cast<F>((__builtin_convertvector(n, vi) + 127) << 23);
}

template <int H, size_t... LANE>
inline vf fold(vf a, vf b, std::index_sequence<LANE...>) {
  // In every 2H lanes: H sums of a's halves, then H of b's.
  constexpr auto first = [](int lane) { return lane / H % 2 ? V + lane - H : lane; };
  return __builtin_shuffle(a, b, vi{first(LANE)...}) + __builtin_shuffle(a, b, vi{first(LANE) + H...});
}

// Lane i of the result is the sum of the lanes of sums[i], all added in the same order.
template <int H = V / 2>
inline vf lanes_summed(vf* sums) {
  for (int i = 0; i < H; ++i) sums[i] = fold<H>(sums[i], sums[i + H], std::make_index_sequence<V>());
  if constexpr (H > 1)
    return lanes_summed<H / 2>(sums);
  else
    return sums[0];
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

}  // namespace
