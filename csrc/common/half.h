// Half precision in the fast kernels: numbers of 16 bits in memory, float in registers.
//
// Storage types, and reads and writes of whole or partial vectors that widen and round (to nearest, ties to even)
// on the way. A kernel written with them serves float, double, bfloat16 and float16 alike. Include only in files
// compiled once per instruction set.
#pragma once

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
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
#if defined(CPU_CAPABILITY_AVX512)  // gcc widens __builtin_convertvector's lanes by halves
  return (Vec<float>)((FloatBits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)lanes) << 16);
#elif defined(CPU_CAPABILITY_AVX2)
  return (Vec<float>)((FloatBits)_mm256_cvtepu16_epi32((__m128i)lanes) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(lanes, FloatBits) << 16);
#endif
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

// One number of memory, widened.
template <class S>
SCRATCHNN_INLINE Wide<S> read_one(const S* p) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    return number;
  } else if constexpr (std::is_same_v<S, Half>) {
    _Float16 number;
    std::memcpy(&number, p, sizeof(number));
    return static_cast<float>(number);
  } else {
    return *p;
  }
}

template <class S>
SCRATCHNN_INLINE void write_one(S* p, Wide<S> x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16, quiet_nan = (bits >> 16) | 0x40u;
    p->bits = static_cast<uint16_t>(x == x ? rounded : quiet_nan);
  } else if constexpr (std::is_same_v<S, Half>) {
    const _Float16 number = static_cast<_Float16>(x);
    std::memcpy(p, &number, sizeof(number));
  } else {
    *p = x;
  }
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

// -1 in the first `count` lanes, 0 in the others.
template <class T, int... i>
SCRATCHNN_INLINE Vec<IntOf<T>> first_lanes_mask_of(int64_t count, std::integer_sequence<int, i...>) {
  const Vec<IntOf<T>> lane = {i...};
  return lane < static_cast<IntOf<T>>(count);
}
template <class T>
SCRATCHNN_INLINE Vec<IntOf<T>> first_lanes_mask(int64_t count) {
  return first_lanes_mask_of<T>(count, std::make_integer_sequence<int, kLanes<T>>());
}

// The first `count` numbers only; the other lanes are read as zero.
template <class S>
SCRATCHNN_INLINE Vec<Wide<S>> read_partial(const S* p, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(S) == 2) return widen((HalfLanes)_mm256_maskz_loadu_epi16((1u << count) - 1, p), S());
  if constexpr (std::is_same_v<S, float>) return (Vec<float>)_mm512_maskz_loadu_ps((1u << count) - 1, p);
  if constexpr (std::is_same_v<S, double>) return (Vec<double>)_mm512_maskz_loadu_pd((1u << count) - 1, p);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<S, float>) return (Vec<float>)_mm256_maskload_ps(p, (__m256i)first_lanes_mask<S>(count));
  if constexpr (std::is_same_v<S, double>)
    return (Vec<double>)_mm256_maskload_pd(p, (__m256i)first_lanes_mask<S>(count));
#endif
  S lanes[kLanes<Wide<S>>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(S));
  return read(lanes);
}

template <class S>
SCRATCHNN_INLINE void write_partial(S* p, Vec<Wide<S>> v, int64_t count) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(S) == 2) return _mm256_mask_storeu_epi16(p, (1u << count) - 1, (__m256i)narrow(v, S()));
  if constexpr (std::is_same_v<S, float>) return _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
  if constexpr (std::is_same_v<S, double>) return _mm512_mask_storeu_pd(p, (1u << count) - 1, (__m512d)v);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<S, float>) {
    return _mm256_maskstore_ps(p, (__m256i)first_lanes_mask<S>(count), (__m256)v);
  }
  if constexpr (std::is_same_v<S, double>) {
    return _mm256_maskstore_pd(p, (__m256i)first_lanes_mask<S>(count), (__m256d)v);
  }
#endif
  S lanes[kLanes<Wide<S>>];
  write(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(S));
}

// Numbers of 16 bits by twos: those of `even` beside those of `odd`, a pair in each lane.
template <class S>
SCRATCHNN_INLINE Vec<float> load_pairs(const S* even, const S* odd) {
  static_assert(sizeof(S) == sizeof(BFloat16));
  const auto bits = [](const S* p) __attribute__((always_inline)) {  // as the upper half of each lane
    return (FloatBits)read(reinterpret_cast<const BFloat16*>(p));
  };
  return (Vec<float>)(bits(even) >> 16 | bits(odd));
}
// Of the first `count` of each; the rest is zero.
template <class S>
SCRATCHNN_INLINE Vec<float> load_pairs(const S* even, const S* odd, int64_t count) {
  static_assert(sizeof(S) == sizeof(BFloat16));
  if (count >= kLanes<float>) return load_pairs(even, odd);
  const auto bits = [&](const S* p) __attribute__((always_inline)) {
    return (FloatBits)read_partial(reinterpret_cast<const BFloat16*>(p), count);
  };
  return (Vec<float>)(bits(even) >> 16 | bits(odd));
}

// to[i] = from[i], widened or rounded where the types differ.
template <class From, class To>
SCRATCHNN_INLINE void copy_numbers(const From* from, int64_t count, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(To));
  } else {
    constexpr int lanes = kLanes<Wide<From>>;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) write(to + i, read(from + i));
    if (i < count) write_partial(to + i, read_partial(from + i, count - i), count - i);
  }
}

// Whether the instruction set reads and writes some of a vector's numbers S at once.
#if defined(CPU_CAPABILITY_AVX512)
template <class S>
constexpr bool kHasPartial = true;
#elif defined(CPU_CAPABILITY_AVX2)
template <class S>
constexpr bool kHasPartial = sizeof(S) >= 4;
#else
template <class S>
constexpr bool kHasPartial = false;
#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
