// Stores that go past the cache, for results too large to be found there again.
//
// An ordinary store first fetches the line it writes to: of a large result that is a third of all traffic, and it
// drives out of the cache what is about to be read. Include only in files compiled once per instruction set.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/half.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// What is larger will not be found in the cache again.
constexpr int64_t kLargeBytes = 16 << 20;

// Whether `count` numbers written from p on in vectors that begin at multiples of `step` are better streamed: those of
// so many bytes.
template <class S>
SCRATCHNN_INLINE bool is_worth_streaming(const S* p, int64_t count, int64_t step, int64_t fewest_bytes = kLargeBytes) {
#if defined(__x86_64__)
  constexpr int64_t kLine = 64;
  const int64_t size = sizeof(S);
  return count * size >= fewest_bytes && step * size % kLine == 0 && reinterpret_cast<uintptr_t>(p) % kLine == 0;
#else
  return false;
#endif
}

// As write, where is_worth_streaming says so.
template <class S>
SCRATCHNN_INLINE void stream(S* p, Vec<Wide<S>> v) {
#if defined(__x86_64__)
  if constexpr (sizeof(S) == 2) {
    const HalfLanes lanes = narrow(v, S());
#if defined(CPU_CAPABILITY_AVX512)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)lanes);
#elif defined(CPU_CAPABILITY_AVX2)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)lanes);
#else
    std::memcpy(p, &lanes, sizeof(lanes));
#endif
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(CPU_CAPABILITY_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#endif
  }
#else
  write(p, v);
#endif
}

// To be called by the thread that streamed, before another one reads.
SCRATCHNN_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
