#include "common/runtime.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "common/dispatch.h"

namespace scratchnn {

InstructionSet active_instruction_set() {
  static const InstructionSet set = [] {
    const std::string name = at::get_cpu_capability();
    if (name == "AVX512") return InstructionSet::AVX512;
    if (name == "AVX2") return InstructionSet::AVX2;
    return InstructionSet::DEFAULT;
  }();
  return set;
}

bool has_matrix_unit() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool has = [] {
    constexpr unsigned kTiles = 1u << 24, kBFloat16Products = 1u << 22;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, ...)
    unsigned a, b, c, d;
    if (active_instruction_set() != InstructionSet::AVX512 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & kTiles) == 0 || (d & kBFloat16Products) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMostKept = size_t{256} << 20;  // more than this is given back at the next request

struct ThreadScratch {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};

thread_local ThreadScratch thread_scratch[2];
thread_local bool naive_requested = false;

}  // namespace

void* detail::scratch(size_t bytes, int slot) {
  ThreadScratch& own = thread_scratch[slot];
  if (bytes > own.bytes || (own.bytes > kMostKept && bytes <= kMostKept)) {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    own.memory.reset();  // first, so that the old and the new are never held together
    own.bytes = 0;
    own.memory.reset(std::aligned_alloc(kAlignment, rounded));
    if (!own.memory) throw std::bad_alloc();
    own.bytes = rounded;
  }
  return own.memory.get();
}

// Each thread takes its share of the range in pieces, then what others have left of theirs: processors are not equally
// fast at all times, above all where they are shared.
void detail::parallel_for(int64_t begin, int64_t end, int64_t grain, bool backwards, RangeFunction function,
                          void* context) {
  constexpr int64_t kPieces = 8;  // of a share
  const int64_t count = end - begin, useful = count / std::max<int64_t>(1, grain);
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), useful);
  if (threads <= 1) {
    if (count > 0) function(context, begin, end);
    return;
  }
  struct alignas(kAlignment) Share {
    std::atomic<int64_t> next;
    int64_t begin, end;
  };
  const std::unique_ptr<Share[]> shares(new Share[threads]);
  for (int64_t i = 0; i < threads; ++i) {
    shares[i].next = shares[i].begin = begin + count * i / threads;
    shares[i].end = begin + count * (i + 1) / threads;
  }
  const int64_t piece = std::max(grain, (count / threads + kPieces - 1) / kPieces);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t own = first; own < last; ++own) {
      for (int64_t i = 0; i < threads; ++i) {
        Share& share = shares[(own + i) % threads];
        for (int64_t from; (from = share.next.fetch_add(piece, std::memory_order_relaxed)) < share.end;) {
          const int64_t to = std::min(from + piece, share.end), ends = share.begin + share.end;
          function(context, backwards ? ends - to : from, backwards ? ends - from : to);
        }
      }
    }
  });
}

int64_t thread_count() {
  return at::get_num_threads();
}

bool naive_kernels_requested() {
  return naive_requested;
}

bool request_naive_kernels(bool naive) {
  const bool before = naive_requested;
  naive_requested = naive;
  return before;
}

}  // namespace scratchnn
