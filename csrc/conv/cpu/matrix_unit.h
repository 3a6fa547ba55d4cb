// Matrix products of bfloat16 by a unit for them (AMX), whose registers are tiles of 16 rows of 64 bytes.
//
// A step takes 16 rows of 32 numbers and as many rows of 16 columns, two of them side by side as in gemm.h, and adds
// 16 x 16 sums of their products to a tile of floats: sixteen times what a vector does. Two tiles of rows meet two of
// columns, so that each that is loaded is used twice.
#pragma once

#include "common/gemm.h"

#if defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Whether numbers S may be multiplied by the unit; has_matrix_unit() (runtime.h) says whether this processor has it.
template <class S>
constexpr bool kHasMatrixUnit = kMultipliesPairs<S>;

constexpr int64_t kUnitRows = 32;   // of the left matrix, multiplied together at most
constexpr int64_t kUnitDepth = 32;  // numbers of the reduction that one step takes

#if defined(CPU_CAPABILITY_AVX512)

// The unit as one thread uses it. What another library has set up there is as it was when this is done.
class MatrixUnit {
 public:
  MatrixUnit() { _tile_storeconfig(&before_); }
  ~MatrixUnit() {
    if (before_.palette == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(&before_);
    }
  }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  // c[r][j] = sum over the reduction q of a[r][q] * b[q][j], added to what is in c where `accumulate`
  //
  //   rows      of a and c, at most kUnitRows; a's are a_stride apart, c's c_stride
  //   segments  of a's rows, one after the other: the reduction, kUnitDepth numbers at a time
  //   b         packed: rows of kTileColumns<float> numbers, the two of a pair of rows side by side
  //   columns   as many of b and c are meant; of c, whole vectors of 16 are written
  void multiply(const BFloat16* a, int64_t a_stride, int64_t rows, const Segment* segments, int64_t segment_count,
                const BFloat16* b, int64_t columns, float* c, int64_t c_stride, bool accumulate) {
    set_rows(rows);
    const bool wide = columns > kTileSide;
    const auto call = rows > kTileSide ? (wide ? &multiply_tiles<2, 2> : &multiply_tiles<2, 1>)
                                       : (wide ? &multiply_tiles<1, 2> : &multiply_tiles<1, 1>);
    call(a, a_stride, segments, segment_count, b, c, c_stride, accumulate);
  }

  // kTileColumns sums and what is added to each, rounded; the first `count` are written.
  static void round(const float* sums, const float* added, int64_t count, BFloat16* to) {
    constexpr int lanes = kLanes<float>;
    const Vec<float> low = load(sums) + load(added), high = load(sums + lanes) + load(added + lanes);
    __m512i numbers;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(numbers) : "v"(low), "v"(high));
    if (count == kTileColumns<float>) {
      std::memcpy(to, &numbers, sizeof(numbers));
    } else {
      _mm512_mask_storeu_epi16(to, (1u << count) - 1, numbers);
    }
  }

 private:
  static constexpr int64_t kTileSide = 16;

  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  // Tiles 0 to 3 are the sums, 4 and 5 the left matrix, 6 and 7 the right one.
  void set_rows(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    Config config{};
    config.palette = 1;
    const int64_t upper = rows < kTileSide ? rows : kTileSide;
    const int64_t of_tile[8] = {upper, upper, rows - upper, rows - upper, upper, rows - upper, kTileSide, kTileSide};
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = static_cast<uint8_t>(of_tile[i]);
      config.row_bytes[i] = of_tile[i] > 0 ? 64 : 0;
    }
    _tile_loadconfig(&config);
  }

  template <int row_tiles, int column_tiles>
  __attribute__((noinline)) static void multiply_tiles(const BFloat16* a, int64_t a_stride, const Segment* segments,
                                                       int64_t segment_count, const BFloat16* b, float* c,
                                                       int64_t c_stride, bool accumulate) {
    constexpr int64_t b_row = 2 * kTileColumns<float>;  // a pair of rows
    const int64_t a_bytes = a_stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t b_bytes = b_row * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    if (accumulate) {
      _tile_loadd(0, c, c_bytes);
      if constexpr (column_tiles == 2) _tile_loadd(1, c + kTileSide, c_bytes);
      if constexpr (row_tiles == 2) _tile_loadd(2, c + kTileSide * c_stride, c_bytes);
      if constexpr (row_tiles * column_tiles == 4) _tile_loadd(3, c + kTileSide * c_stride + kTileSide, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (column_tiles == 2) _tile_zero(1);
      if constexpr (row_tiles == 2) _tile_zero(2);
      if constexpr (row_tiles * column_tiles == 4) _tile_zero(3);
    }
    for (const Segment* segment = segments; segment < segments + segment_count; ++segment) {
      const BFloat16* upper = a + segment->offset;
      const BFloat16* const end = upper + segment->length;
      for (; upper < end; upper += kUnitDepth, b += kUnitDepth / 2 * b_row) {
        // The unit does not multiply while it loads: all loads first, that of the products none waits.
        _tile_loadd(4, upper, a_bytes);
        if constexpr (row_tiles == 2) _tile_loadd(5, upper + kTileSide * a_stride, a_bytes);
        _tile_loadd(6, b, b_bytes);
        if constexpr (column_tiles == 2) _tile_loadd(7, b + 2 * kTileSide, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (column_tiles == 2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (row_tiles == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (row_tiles * column_tiles == 4) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (column_tiles == 2) _tile_stored(1, c + kTileSide, c_bytes);
    if constexpr (row_tiles == 2) _tile_stored(2, c + kTileSide * c_stride, c_bytes);
    if constexpr (row_tiles * column_tiles == 4) _tile_stored(3, c + kTileSide * c_stride + kTileSide, c_bytes);
    asm volatile("" ::: "memory");
  }

  Config before_;
  int64_t rows_ = 0;
};

#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
