// The threads of one parallel region: who they are, and how they wait for each other.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr int SPINS_BEFORE_YIELD = 1000;

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

}  // namespace
