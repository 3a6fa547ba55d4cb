// Rows of large results, written past the cache wherever they begin.
#pragma once

#include <algorithm>

#include "common/stream.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Where rows of a result are written: straight to their place, or, of a result too large to be found in the cache
// again, through a buffer that is copied past the cache.
template <class S>
class Outbox {
 public:
  static constexpr int64_t kRoom = 4096;  // numbers

  // `buffer`: kRoom numbers, and some more that a row may overrun it by.
  Outbox(bool large, S* buffer) : large_(large), buffer_(buffer) {}

  // Where to write the row of `count` numbers that belongs at `to`. Rows longer than kRoom go straight there.
  S* row(S* to, int64_t count) {
    if (!large_ || count > kRoom) return to;
    if (to != to_ + held_ || held_ + count > kRoom) {
      flush();
      to_ = to;
    }
    held_ += count;
    return buffer_ + held_ - count;
  }

  // To be called after the last row.
  void close() {
    flush();
    if (large_) finish_streaming();
  }

 private:
  void flush() {
    constexpr int64_t line = 64;
    const auto* from = reinterpret_cast<const char*>(buffer_);
    auto* to = reinterpret_cast<char*>(to_);
    const int64_t bytes = held_ * static_cast<int64_t>(sizeof(S));
    const int64_t head = std::min(bytes, (line - static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % line)) % line);
    std::copy_n(from, head, to);
    int64_t i = head;
    for (; i + line <= bytes; i += line) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < line; j += kVectorBytes) {
        Vec<float> v;
        std::memcpy(&v, from + i + j, kVectorBytes);
        stream(reinterpret_cast<float*>(to + i + j), v);
      }
    }
    std::copy_n(from + i, bytes - i, to + i);
    held_ = 0;
  }

  bool large_;
  S* buffer_;
  S* to_ = nullptr;
  int64_t held_ = 0;
};

// Whether a result of so many numbers is too large for the cache.
template <class S>
SCRATCHNN_INLINE bool is_large(int64_t count) {
#if defined(__x86_64__)
  return count * static_cast<int64_t>(sizeof(S)) >= kLargeBytes;
#else
  return false;
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
