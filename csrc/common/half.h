// Half precision in the fast kernels: numbers of 16 bits in memory, float in registers.
//
// Storage types, and reads and writes of whole or partial vectors that widen and round (to nearest, ties to even)
// on the way. A kernel written with them serves float, double, bfloat16 and float16 alike. Include only in files
// compiled once per instruction set.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace scratchnn {

// The bits of a number in memory; the arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline namespace CPU_CAPABILITY {

// What a storage type is computed in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

typedef uint16_t HalfLanes __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(kVectorBytes)));

SCRATCHNN_INLINE Vec<float> widen(HalfLanes lanes, BFloat16) {
  return (Vec<float>)(__builtin_convertvector(lanes, FloatBits) << 16);
}

SCRATCHNN_INLINE HalfLanes narrow(Vec<float> v, BFloat16) {
  const FloatBits bits = (FloatBits)v;
  const FloatBits rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
  const FloatBits quiet_nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet_nan, HalfLanes);
}

SCRATCHNN_INLINE Vec<float> widen(HalfLanes lanes, Half) {
#if defined(__F16C__) && defined(CPU_CAPABILITY_AVX512)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)lanes);
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)lanes);
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) {
    _Float16 number;
    const uint16_t bits = lanes[i];
    std::memcpy(&number, &bits, sizeof(number));
    v[i] = static_cast<float>(number);
  }
  return v;
#endif
}

SCRATCHNN_INLINE HalfLanes narrow(Vec<float> v, Half) {
#if defined(__F16C__) && defined(CPU_CAPABILITY_AVX512)
  return (HalfLanes)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (HalfLanes)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  HalfLanes lanes;
  for (int i = 0; i < kLanes<float>; ++i) {
    const _Float16 number = static_cast<_Float16>(v[i]);
    uint16_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    lanes[i] = bits;
  }
  return lanes;
#endif
}

// kLanes<Wide<S>> numbers of memory, widened.
template <class S>
SCRATCHNN_INLINE Vec<Wide<S>> read(const S* p) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return load(p);
  } else {
    HalfLanes lanes;
    std::memcpy(&lanes, p, sizeof(lanes));
    return widen(lanes, S());
  }
}

template <class S>
SCRATCHNN_INLINE void write(S* p, Vec<Wide<S>> v) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    store(p, v);
  } else {
    const HalfLanes lanes = narrow(v, S());
    std::memcpy(p, &lanes, sizeof(lanes));
  }
}

// The first `count` numbers only; the other lanes are read as zero.
template <class S>
SCRATCHNN_INLINE Vec<Wide<S>> read_partial(const S* p, int64_t count) {
  S lanes[kLanes<Wide<S>>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(S));
  return read(lanes);
}

template <class S>
SCRATCHNN_INLINE void write_partial(S* p, Vec<Wide<S>> v, int64_t count) {
  S lanes[kLanes<Wide<S>>];
  write(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(S));
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
