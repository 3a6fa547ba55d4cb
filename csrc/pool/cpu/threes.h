// Contiguous planes under windows of 3x3, going down their columns.
//
// A vector of columns goes down the rows: what a row of the source is to the windows it is in is worked out once and
// kept in registers until the last of them, without scratch memory. Here is what averages (average_threes.h) and maxima
// (max_threes.h) share.
#pragma once

#include "pool/cpu/planes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// A vector of a row that may begin before the row or end after it: `column` is that of its first lane.
template <class T>
class Inside {
 public:
  Inside(int64_t column, int64_t width) {
    const int64_t first = std::clamp<int64_t>(-column, 0, kLanes<T>);
    const int64_t last = std::clamp<int64_t>(width - column, first, kLanes<T>);
#if defined(CPU_CAPABILITY_AVX512)
    mask_ = ((1u << last) - 1) & ~((1u << first) - 1);
#else
    mask_ = first_lanes_mask<T>(last) & ~first_lanes_mask<T>(first);
    before_ = 8 * first;
    after_ = 8 * (kLanes<T> - last);
#endif
  }

  // The numbers of the lanes that are in the row, `outside` in the others. p is where the vector begins.
  SCRATCHNN_MEMBER Vec<T> of(const T* p, Vec<T> outside = Vec<T>{}) const {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_mask_loadu_ps((__m512)outside, mask_, p);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_mask_loadu_pd((__m512d)outside, mask_, p);
#else
    Vec<T> v = {};
#if defined(CPU_CAPABILITY_AVX2)
    if constexpr (sizeof(T) == 4) v = (Vec<T>)_mm256_maskload_ps(p, (__m256i)mask_);
    if constexpr (sizeof(T) == 8) v = (Vec<T>)_mm256_maskload_pd(p, (__m256i)mask_);
#else
    for (int i = 0; i < kLanes<T>; ++i) {
      if (mask_[i] != 0) v[i] = p[i];
    }
#endif
    return mask_ ? v : outside;
#endif
  }

  // The same of bytes, zeros in the other lanes. Rows have a vector of them or more, unless kAnyBytes.
  static constexpr bool kAnyBytes = kVectorBytes == 64;
  SCRATCHNN_MEMBER Vec<IntOf<T>> of(const uint8_t* p) const {
#if defined(CPU_CAPABILITY_AVX512)
    const __m128i bytes = _mm_maskz_loadu_epi8(mask_, p);
    if constexpr (sizeof(T) == 4) return (Vec<IntOf<T>>)_mm512_maskz_cvtepu8_epi32(0xFFFF, bytes);
    if constexpr (sizeof(T) == 8) return (Vec<IntOf<T>>)_mm512_maskz_cvtepu8_epi64(0xFF, bytes);
#else
    // A vector's bytes that are all in the row, moved to where they would be.
    using Bits = std::conditional_t<kLanes<T> == 8, uint64_t, std::conditional_t<kLanes<T> == 4, uint32_t, uint16_t>>;
    Bits bits;
    std::memcpy(&bits, p + (before_ - after_) / 8, sizeof(bits));
    bits = static_cast<Bits>(static_cast<Bits>(bits << before_) >> after_);
    uint8_t bytes[kLanes<T>];
    std::memcpy(bytes, &bits, sizeof(bits));
    return load_offsets<T>(bytes);
#endif
  }

 private:
#if defined(CPU_CAPABILITY_AVX512)
  unsigned mask_;
#else
  Vec<IntOf<T>> mask_;
  int64_t before_, after_;  // bits, of the bytes of the lanes that are not in the row
#endif
};

// The rows of a result's planes in bands of about as many numbers as an Outbox holds: short enough to stay in the
// cache while vector after vector of columns goes down them.
template <class T>
class Bands {
 public:
  explicit Bands(const Extent& result)
      : height_(result[1]),
        rows_(std::clamp<int64_t>(Outbox<T>::kRoom / result[2], 1, height_)),
        count_((height_ + rows_ - 1) / rows_) {}

  int64_t rows() const { return rows_; }    // of a band, at most
  int64_t count() const { return count_; }  // of bands of a plane
  int64_t begin(int64_t band) const { return height_ * band / count_; }

 private:
  int64_t height_, rows_, count_;
};

// Asks memory for what is soon read, a share of it at each of some steps: down a column, one line follows another too
// far away for the processor to foresee it.
class Upcoming {
 public:
  template <class T>
  Upcoming(const T* from, int64_t count, int64_t steps)
      : from_(reinterpret_cast<const char*>(from)), bytes_(count * static_cast<int64_t>(sizeof(T)) / steps + 1) {}

  SCRATCHNN_MEMBER void ask(int64_t step) const { prefetch(from_ + step * bytes_, bytes_); }

 private:
  const char* from_;
  int64_t bytes_;
};

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
