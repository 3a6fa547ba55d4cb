// Maxima, lane by lane, and where they came from.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <limits>

#include "common/half.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Maxima and the taps they came from, as a window is gone through.
template <class T, bool kOffsets, bool kNaN>
struct Running {
  Vec<T> value;
  Vec<IntOf<T>> tap;

  SCRATCHNN_MEMBER void take(Vec<T> other, Vec<IntOf<T>> other_tap) {
    Vec<IntOf<T>> better = other > value;
    if constexpr (kNaN) better |= other != other;  // NaN beats everything
    value = better ? other : value;
    if constexpr (kOffsets) tap = better ? other_tap : tap;
  }
};

// Looks out for NaN, which most numbers are not: kernels compare without it, and again with it where some were seen.
template <class T>
class NaNs {
 public:
  SCRATCHNN_MEMBER void look_at(Vec<T> a, Vec<T> b) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(T) == 4) seen_ |= _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q);
    if constexpr (sizeof(T) == 8) seen_ |= _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_UNORD_Q);
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (sizeof(T) == 4) seen_ |= (Seen)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
    if constexpr (sizeof(T) == 8) seen_ |= (Seen)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_UNORD_Q);
#else
    seen_ |= (a != a) | (b != b);
#endif
  }
  SCRATCHNN_MEMBER bool any() const {
#if defined(CPU_CAPABILITY_AVX512)
    return seen_ != 0;
#elif defined(CPU_CAPABILITY_AVX2)
    return _mm256_movemask_epi8((__m256i)seen_) != 0;
#else
    IntOf<T> any = 0;
    for (int i = 0; i < kLanes<T>; ++i) any |= seen_[i];
    return any != 0;
#endif
  }
  SCRATCHNN_MEMBER void add(const NaNs& others) { seen_ |= others.seen_; }

 private:
#if defined(CPU_CAPABILITY_AVX512)
  unsigned seen_ = 0;
#else
  using Seen = Vec<IntOf<T>>;
  Seen seen_ = {};
#endif
};

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
