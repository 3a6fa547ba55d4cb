// The weight gradient of depthwise convolution of contiguous planes with stride 1, along the rows as forward
// (depthwise_planes.h).
#pragma once

#include "conv/cpu/depthwise_planes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// The numbers of x and dy that come next, asked of memory a few lines at a time, in so many steps.
class UpcomingPlanes {
 public:
  template <class T>
  UpcomingPlanes(const T* x, int64_t x_count, const T* dy, int64_t dy_count, int64_t steps)
      : x_(x, x_count, steps), dy_(dy, dy_count, steps) {}
  SCRATCHNN_MEMBER void step() {
    x_.step();
    dy_.step();
  }

 private:
  struct Lines {
    static constexpr int64_t kLine = 64;
    const char *next, *end;
    int64_t at_once;

    template <class T>
    Lines(const T* from, int64_t count, int64_t steps)
        : next(reinterpret_cast<const char*>(from)),
          end(reinterpret_cast<const char*>(from + count)),
          at_once((end - next + kLine * steps - 1) / (kLine * steps)) {}
    SCRATCHNN_MEMBER void step() {
      for (int64_t i = 0; i < at_once && next < end; ++i, next += kLine) prefetch(next);
    }
  };
  Lines x_, dy_;
};

// Some rows of dy, and what they read of x, copied with its border.
template <class T>
struct PlanePair {
  const T* x;
  int64_t x_width;  // from one row to the next
  const T* dy;
  int64_t width, rows;  // of dy

  // The lanes of the last vector, which ends with the row, that are in no vector before it.
  Vec<IntOf<T>> fresh_lanes() const { return ~first_lanes_mask<T>(kLanes<T> - width % kLanes<T>); }
  PlanePair from(int64_t column) const { return {x + column, x_width, dy + column, width, rows}; }
};

// Columns of taps whose sums are in registers together, beside as many rows of dy as the kernel has.
constexpr int columns_together(int side) {
  return kVectorBytes == 64 || side == 3 ? 3 : 1;
}

// Adds to sums[column][row] of some columns of taps, `step` apart, the products of a vector of all rows. Down the rows,
// each is loaded once: those of dy that a row of x meets, `side` of them, stay in registers. Of a part of a vector only
// the lanes of `fresh` count.
template <int side, int columns, bool part, class T>
SCRATCHNN_INLINE void slide_down(const PlanePair<T> at, int64_t step, const Vec<IntOf<T>> fresh,
                                 UpcomingPlanes& upcoming, Vec<T> (&sums)[columns][side]) {
  const auto pixels = [=](const T* p) __attribute__((always_inline)) {
    const Vec<T> v = load(p);
    return part ? fresh ? v : Vec<T>{} : v;
  };
  const auto row_of_x = [=](int64_t i, int t)
                            __attribute__((always_inline)) { return pixels(at.x + i * at.x_width + t * step); };
  const auto row_of_dy = [=](int64_t r) __attribute__((always_inline)) { return pixels(at.dy + r * at.width); };
  // Row i of x is row i - r of the kernel to row r of dy.
  const auto add_row = [&](int64_t i) __attribute__((always_inline)) {
    Vec<T> x[columns];
#pragma GCC unroll 3
    for (int t = 0; t < columns; ++t) x[t] = row_of_x(i, t);
#pragma GCC unroll 7
    for (int k = 0; k < side; ++k) {
      if (i - k < 0 || i - k >= at.rows) continue;
      const Vec<T> dy = row_of_dy(i - k);
#pragma GCC unroll 3
      for (int t = 0; t < columns; ++t) sums[t][k] = fma(x[t], dy, sums[t][k]);
    }
  };
  int64_t i = 0;
  for (; i < side - 1; ++i) add_row(i);
  if (i + side <= at.rows) {
    Vec<T> dy[side];  // of the rows i - side + 1 to i, each where the one `side` rows before it was
#pragma GCC unroll 7
    for (int k = 1; k < side; ++k) dy[side - k] = row_of_dy(i - k);
    for (; i + side <= at.rows; i += side) {
      upcoming.step();
      const auto add = [&](auto row) __attribute__((always_inline)) {
        constexpr int here = decltype(row)::value;
        dy[here] = row_of_dy(i + here);
#pragma GCC unroll 3
        for (int t = 0; t < columns; ++t) {
          Vec<T> x = row_of_x(i + here, t);
          SCRATCHNN_KEEP_IN_REGISTER(x);
#pragma GCC unroll 7
          for (int k = 0; k < side; ++k) sums[t][k] = fma(x, dy[(here - k + side) % side], sums[t][k]);
        }
      };
      [&]<int... row>(std::integer_sequence<int, row...>) __attribute__((always_inline)) {
        (add(std::integral_constant<int, row>()), ...);
      }(std::make_integer_sequence<int, side>());
    }
  }
  for (; i < at.rows + side - 1; ++i) add_row(i);
}

// Adds to sums[row * kernel.columns + column] the products of all rows with some columns of taps, from sums' first on.
template <int side, int columns, class T>
__attribute__((noinline)) void add_columns(const PlanePair<T>& at, const PlaneKernel& kernel, UpcomingPlanes& upcoming,
                                           T* sums) {
  constexpr int64_t n = kLanes<T>;
  const Vec<IntOf<T>> fresh = at.fresh_lanes();
  Vec<T> total[columns][side] = {};
  int64_t column = 0;
  for (; column + n <= at.width; column += n) {
    slide_down<side, columns, false>(at.from(column), kernel.column_step, fresh, upcoming, total);
  }
  if (column < at.width) {
    slide_down<side, columns, true>(at.from(at.width - n), kernel.column_step, fresh, upcoming, total);
  }
#pragma GCC unroll 3
  for (int t = 0; t < columns; ++t) {
#pragma GCC unroll 7
    for (int k = 0; k < side; ++k) sums[k * kernel.columns + t] += horizontal_sum<T>(total[t][k]);
  }
}

// The same of all columns, under kernels of `side` rows.
template <int side, class T>
void add_all_columns(const PlanePair<T>& at, const PlaneKernel& kernel, UpcomingPlanes& upcoming, T* sums) {
  const int64_t groups = (kernel.columns + columns_together(side) - 1) / columns_together(side);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = kernel.columns * group / groups, end = kernel.columns * (group + 1) / groups;
    PlanePair<T> here = at;
    here.x += first * kernel.column_step;
    with_constant<columns_together(side)>(
        end - first, [&](auto columns) { add_columns<side, columns>(here, kernel, upcoming, sums + first); });
  }
}

// Adds to sums[i] the products of all rows with x at the offset of tap i, of `count` taps.
template <int count, class T>
void add_taps(const PlanePair<T>& at, const int64_t* offsets, UpcomingPlanes& upcoming, T* sums) {
  constexpr int64_t n = kLanes<T>;
  const Vec<IntOf<T>> fresh = at.fresh_lanes();
  const int64_t whole = at.width / n * n, last = at.width - n;
  Vec<T> total[count] = {};
  const T* from[count];
#pragma GCC unroll 9
  for (int i = 0; i < count; ++i) from[i] = at.x + offsets[i];
  for (int64_t row = 0; row < at.rows; ++row) {
    const T* dy = at.dy + row * at.width;
    upcoming.step();
    for (int64_t i = 0; i < whole; i += n) {
      const Vec<T> gradient = load(dy + i);
#pragma GCC unroll 9
      for (int t = 0; t < count; ++t) total[t] = fma(load(from[t] + row * at.x_width + i), gradient, total[t]);
    }
    if (whole == at.width) continue;
    const Vec<T> end = load(dy + last), gradient = fresh ? end : Vec<T>{};
#pragma GCC unroll 9
    for (int t = 0; t < count; ++t) {
      const Vec<T> x = load(from[t] + row * at.x_width + last);
      total[t] = fma(fresh ? x : Vec<T>{}, gradient, total[t]);
    }
  }
#pragma GCC unroll 9
  for (int t = 0; t < count; ++t) sums[t] += horizontal_sum<T>(total[t]);
}

// Channel by channel, through the whole batch.
template <class T>
void weight_grad_of_planes(const Correlation& c, const Images<const T>& grad, const Images<const T>& input,
                           int64_t batch, const Filters<T>& grad_weight) {
  constexpr int most = 9;
  const PaddedBands<T> bands(c, input.size);
  const PlaneKernel kernel(c, bands.width);
  const int64_t taps = kernel.taps(), width = c.count[2], channels = input.channels;
  const bool slides = kernel.row_step == 1 && (kernel.rows == 3 || kernel.rows == 5 || kernel.rows == 7);
  const int64_t vectors = (width + kLanes<T> - 1) / kLanes<T>;
  const int64_t tile = kernel.rows * columns_together(static_cast<int>(kernel.rows));  // taps summed together
  parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
    T* padded = scratch<T>(bands.size() + taps);
    T* sums = padded + bands.size();
    for (int64_t channel = begin; channel < end; ++channel) {
      std::fill_n(sums, taps, T(0));
      for (int64_t item = 0; item < batch * bands.count; ++item) {
        const int64_t plane = item / bands.count * channels + channel, band = item % bands.count;
        const int64_t first = bands.begin(band), rows = bands.begin(band + 1) - first;
        bands.copy(input.data + plane * input.pixels(), first, first + rows, padded);
        const PlanePair<T> at{padded, bands.width, grad.data + plane * grad.pixels() + first * width, width, rows};
        const bool ends = band + 1 == bands.count;  // and the same channel of the next image follows
        const int64_t then = ends ? plane + channels : plane, row_then = ends ? 0 : first + rows;
        const int64_t steps =
            slides ? std::max<int64_t>(1, kernel.columns * vectors * rows / tile) : (taps + most - 1) / most * rows;
        UpcomingPlanes upcoming(input.data + (then * input.size[1] + row_then) * input.size[2], rows * input.size[2],
                                grad.data + (then * grad.size[1] + row_then) * width, rows * width, steps);
        if (slides) {
          const auto add = kernel.rows == 3   ? &add_all_columns<3, T>
                           : kernel.rows == 5 ? &add_all_columns<5, T>
                                              : &add_all_columns<7, T>;
          add(at, kernel, upcoming, sums);
          continue;
        }
        for_each_piece<most>(taps, [&](int64_t t, int64_t count) {
          with_constant<most>(
              count, [&](auto constant) { add_taps<constant>(at, kernel.offsets.data() + t, upcoming, sums + t); });
        });
      }
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t tap = kernel.weights[static_cast<size_t>(t)];
        grad_weight.data[channel * grad_weight.out_stride + tap * grad_weight.tap_stride] = sums[t];
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
