// Maxima of contiguous planes over windows of 3x3 that step by one or by two, and their gradients. Windows may have any
// depth.
//
// Forward, the maximum of three columns is found once a row, and that of its windows from three such rows. Backward,
// the gradient and the choice of a window are loaded once, and given to the three rows that the window has.
#pragma once

#include <limits>

#include "pool/cpu/maxima.h"
#include "pool/cpu/threes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

constexpr int64_t kMostDepths = 4;  // of a window

// Whether windows are so, and some of a result's row fills most of a vector; and then how far the windows of the first
// row begin above the plane. `windows` and `pixels` are how many there are.
template <class T>
bool takes_max_threes(const Relation& relation, bool forward, int64_t& padding) {
  const EvenColumns& columns = relation.columns;
  const Links& rows = relation.along[1];
  const Extent& windows = forward ? relation.result : relation.source;
  const Extent& pixels = forward ? relation.source : relation.result;
  const int64_t stride = columns.stride;
  if (relation.channels_last || columns.taps != 3 || columns.dilation != 1 || stride < 1 || stride > 2) return false;
  if (columns.padding > 1 || 2 * windows[2] <= kLanes<T> || relation.links[1] == 0) return false;
  if (!forward && !Inside<T>::kAnyBytes && windows[2] < kLanes<T>) return false;
  for (int64_t z = 0; z < relation.result[0]; ++z) {
    if (relation.along[0].count(z) > kMostDepths || (forward && relation.along[0].count(z) == 0)) return false;
  }
  // Row i of the pixels is tap i + padding - w stride of the windows in row w. All that are inside of the plane, and
  // no others.
  const auto begins_at = [&](int64_t result, const Link& link) {
    const int64_t pixel = forward ? link.source : result, window = forward ? result : link.source;
    return pixel - window * stride - link.tap / columns.taps;
  };
  int64_t links = 0, first = 0;
  while (rows.count(first) == 0) ++first;
  padding = -begins_at(first, *rows.begin(first));
  for (int64_t i = 0; i < relation.result[1]; ++i) {
    for (int64_t k = 0; k < rows.count(i); ++k) {
      const Link& link = rows.begin(i)[k];
      if (begins_at(i, link) != -padding || link.tap % columns.taps != 0 || link.tap > 2 * columns.taps) return false;
    }
  }
  for (int64_t w = 0; w < windows[1]; ++w) {
    const int64_t begin = w * stride - padding;
    links += std::min(pixels[1], begin + 3) - std::max<int64_t>(0, begin);
  }
  return links == relation.links[1];
}

// The three columns of a vector of windows, from the first one's first on. Rows of `width` columns; `column` is that
// of the first.
template <class T, int kStride>
struct InnerColumns {
  SCRATCHNN_MEMBER void load_to(const T* p, Vec<T> (&columns)[3]) const {
    if constexpr (kStride == 1) {
      for (int i = 0; i < 3; ++i) columns[i] = load(p + i);
    } else {
      constexpr int n = kLanes<T>;
      join(load(p), load(p + n), load(p + 2), load(p + n + 2), columns);
    }
  }
  SCRATCHNN_MEMBER static void join(Vec<T> a, Vec<T> b, Vec<T> next_a, Vec<T> next_b, Vec<T> (&columns)[3]) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>();
    columns[0] = every_second<T, 0>(a, b, lanes);
    columns[1] = every_second<T, 1>(a, b, lanes);
    columns[2] = every_second<T, 0>(next_a, next_b, lanes);
  }
};

// The same where some are outside of the row, and lose.
template <class T, int kStride>
struct OuterColumns {
  static constexpr int n = kLanes<T>;
  Inside<T> first, second, third, fourth;

  OuterColumns(int64_t column, int64_t width)
      : first(column, width),
        second(column + (kStride == 1 ? 1 : n), width),
        third(column + 2, width),
        fourth(column + n + 2, width) {}

  SCRATCHNN_MEMBER void load_to(const T* p, Vec<T> (&columns)[3]) const {
    const Vec<T> outside = broadcast(-std::numeric_limits<T>::infinity());
    if constexpr (kStride == 1) {
      columns[0] = first.of(p, outside);
      columns[1] = second.of(p + 1, outside);
      columns[2] = third.of(p + 2, outside);
    } else {
      InnerColumns<T, kStride>::join(first.of(p, outside), second.of(p + n, outside), third.of(p + 2, outside),
                                     fourth.of(p + n + 2, outside), columns);
    }
  }
};

// Some rows of windows of a plane, at one depth: `column` is where the first row of the plane at depth 0 has their
// first column, which may be outside. `first_tap` is the first of each window's columns that is inside.
template <class T>
struct WindowStrip {
  const T* column;
  int64_t height, width, padding;
  const Link* depths;
  int64_t depth_count;
  int64_t y_begin, y_end;
  Vec<IntOf<T>> first_tap;
};

// put(y, maxima) for each row of windows. Whether there was NaN.
template <int kStride, bool kFlat, bool kOffsets, bool kNaN, class T, class Loader, class Put>
SCRATCHNN_INLINE bool max_down(const WindowStrip<T> strip, const Loader loader, const Put put) {
  using Int = IntOf<T>;
  using Three = Running<T, kOffsets, kNaN>;
  constexpr int kKept = 3 - kStride;  // rows that the next windows have as well
  const Vec<T> outside = broadcast(-std::numeric_limits<T>::infinity());
  NaNs<T> nans;
  const auto row = [&](int64_t depth, int64_t y) __attribute__((always_inline)) {
    Three three{outside, {}};
    if (y >= 0 && y < strip.height) {
      Vec<T> columns[3];
      loader.load_to(strip.column + (depth * strip.height + y) * strip.width, columns);
      if constexpr (!kNaN) nans.look_at(columns[0], columns[1]), nans.look_at(columns[2], columns[2]);
      three.value = columns[0];
      three.take(columns[1], broadcast(Int(1)));
      three.take(columns[2], broadcast(Int(2)));
    }
    return three;
  };
  const int64_t depth_count = kFlat ? 1 : strip.depth_count;
  Three kept[kFlat ? 1 : kMostDepths][kKept];
  for (int64_t d = 0; d < depth_count; ++d) {
#pragma GCC unroll 2
    for (int i = 0; i < kKept; ++i) {
      kept[d][i] = row(strip.depths[d].source, strip.y_begin * kStride - strip.padding + i);
    }
  }
  for (int64_t y = strip.y_begin; y < strip.y_end; ++y) {
    const int64_t top = y * kStride - strip.padding;
    // Nothing is below -inf: where all values are, the first tap inside stands, as in torch.
    const Int first_row = static_cast<Int>(strip.depths->tap + 3 * std::max<int64_t>(0, -top));
    Three best{outside, strip.first_tap + first_row};
    for (int64_t d = 0; d < depth_count; ++d) {
      const Int tap = static_cast<Int>(strip.depths[d].tap);
      Three rows[3];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        rows[i] = i < kKept ? kept[d][i] : row(strip.depths[d].source, top + i);
        best.take(rows[i].value, rows[i].tap + static_cast<Int>(tap + 3 * i));
      }
#pragma GCC unroll 2
      for (int i = 0; i < kKept; ++i) kept[d][i] = rows[kStride + i];
    }
    put(y, best);
  }
  return nans.any();
}

template <int kStride, bool kFlat, bool kOffsets, class T>
void max_of_threes(const T* input, T* output, uint8_t* offsets, const Relation& forward, int64_t padding) {
  using Int = IntOf<T>;
  constexpr int64_t n = kLanes<T>;
  const Extent &in = forward.source, &out = forward.result;
  const int64_t planes = forward.images * forward.channels;
  const Bands<T> bands(out);
  const bool large = is_large<T>(planes * volume(out));
  const int64_t grain = std::max<int64_t>(1, kGrain / (bands.rows() * (kStride * in[2] + out[2])));
  parallel_for(0, planes * out[0] * bands.count(), grain, [&](int64_t first, int64_t last) {
    Outbox<T> outbox(large, scratch<T>(Outbox<T>::kRoom));
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = bands.begin(i % bands.count()), end = bands.begin(i % bands.count() + 1);
      const int64_t z = i / bands.count() % out[0], plane = i / bands.count() / out[0];
      const int64_t place = (i / bands.count() * out[1] + begin) * out[2];
      T* to = outbox.row(output + place, (end - begin) * out[2]);
      // About what the next band reads that this one does not.
      const int64_t share = volume(in) / out[0] / bands.count(), rows = end - begin;
      const Upcoming upcoming(input + (i + 1) * share, i + 1 < last ? share : 0, rows * ((out[2] + n - 1) / n));
      for_each_vector<T>(out[2], [&](int64_t x, int64_t lanes) {
        const int64_t column = x * kStride - forward.columns.padding;
        WindowStrip<T> strip{input + plane * volume(in) + column, in[1], in[2], padding, forward.along[0].begin(z),
                             forward.along[0].count(z),           begin, end,   {}};
        if (column < 0) strip.first_tap[0] = 1;
        T* values = to + x;
        uint8_t* taps = kOffsets ? offsets + place + x : nullptr;
        // Copies of what is needed: the compiler must take it that the stores may change the originals.
        const auto put = [=, width = out[2], step = (x + n - 1) / n * rows](
                             int64_t y, const auto& best) __attribute__((always_inline)) {
          upcoming.ask(step + y - begin);
          store_some(values + (y - begin) * width, best.value, lanes);
          if constexpr (!kOffsets) return;
          if (lanes == n) {
            store_offsets<T>(taps + (y - begin) * width, best.tap);
          } else {
            store_offset_vector<T>(taps + (y - begin) * width, best.tap, 0, Block<1, true>{0, lanes});
          }
        };
        const auto run = [&](const auto& loader) __attribute__((always_inline)) {
          if (max_down<kStride, kFlat, kOffsets, false>(strip, loader, put)) {
            max_down<kStride, kFlat, kOffsets, true>(strip, loader, put);
          }
        };
        if (column >= 0 && column + kStride * n + 2 <= in[2]) {
          run(InnerColumns<T, kStride>());
        } else {
          run(OuterColumns<T, kStride>(column, in[2]));
        }
      });
    }
    outbox.close();
  });
}

// What pixels ask of a vector of windows: which tap was your maximum, and what is its gradient?
template <class T>
struct Asked {
  Vec<T> grad;
  Vec<IntOf<T>> chosen;

  SCRATCHNN_MEMBER Vec<T> of(IntOf<T> tap) const { return chosen == tap ? grad : Vec<T>{}; }
};

// Gradients of pixels in rows one below the other, kStride vectors of columns in turn.
template <int kStride, bool kPadded, class T>
struct PixelRow {
  Vec<T> parts[kStride];

  // From the windows whose taps from kTap on are in this row.
  template <int kTap>
  SCRATCHNN_MEMBER void ask(const Asked<T> (&windows)[4 - kStride]) {
    if constexpr (kStride == 1) {
      parts[0] += windows[0].of(kTap + 2);
      parts[0] += windows[1].of(kTap + 1);
      parts[0] += windows[2].of(kTap);
    } else {
      // With padding, even columns are in the middle of a window, odd ones in two; without, it is the other way round.
      constexpr int middle = kPadded ? 0 : 1;
      parts[middle] += windows[middle].of(kTap + 1);
      parts[1 - middle] += windows[0].of(kTap + 2);
      parts[1 - middle] += windows[1].of(kTap);
    }
  }
};

// put(y, row of pixels) for the rows [begin, end) of a plane, and for some around them. ask(at, asked) gets the windows
// that are `at` after those of the first row.
template <int kStride, bool kPadded, bool kFlat, class T, class Ask, class Put>
SCRATCHNN_INLINE void gather_down(const Extent& windows, int64_t padding, const Link* depths, int64_t depth_count,
                                  int64_t begin, int64_t end, const Ask ask, const Put put) {
  const int64_t height = windows[1], width = windows[2];
  if constexpr (kFlat) depth_count = 1;
  // The rows of pixels that a row of windows has. With it the first kStride have all that they get.
  PixelRow<kStride, kPadded, T> first{}, second{}, third{};
  for (int64_t y = (begin + padding) / kStride - (3 - kStride); y * kStride - padding < end; ++y) {
    if (y >= 0 && y < height) {
      for (int64_t d = 0; d < depth_count; ++d) {
        Asked<T> asked[4 - kStride];
        ask(((kFlat ? 0 : depths[d].source * height) + y) * width, asked);
        if constexpr (!kFlat) {
          const auto tap = static_cast<IntOf<T>>(depths[d].tap);
#pragma GCC unroll 3
          for (auto& each : asked) each.chosen -= tap;
        }
        first.template ask<0>(asked);
        second.template ask<3>(asked);
        third.template ask<6>(asked);
      }
    }
    put(y * kStride - padding, first);
    if constexpr (kStride == 2) put(y * kStride - padding + 1, second);
    first = kStride == 1 ? second : third;
    second = kStride == 1 ? third : PixelRow<kStride, kPadded, T>{};
    third = {};
  }
}

template <int kStride, bool kPadded, bool kFlat, class T>
void gather_threes(const T* grad, const uint8_t* offsets, T* grad_input, const Relation& backward, int64_t padding) {
  constexpr int64_t n = kLanes<T>;
  constexpr int kAsked = 4 - kStride;  // vectors of windows
  const Extent &in = backward.result, &out = backward.source;
  const int64_t planes = backward.images * backward.channels;
  const Bands<T> bands(in);
  const bool large = is_large<T>(planes * volume(in));
  const int64_t grain = std::max<int64_t>(1, kGrain / (bands.rows() * (in[2] + out[2])));
  parallel_for(0, planes * in[0] * bands.count(), grain, [&](int64_t first, int64_t last) {
    Outbox<T> outbox(large, scratch<T>(Outbox<T>::kRoom));
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = bands.begin(i % bands.count()), end = bands.begin(i % bands.count() + 1);
      const int64_t z = i / bands.count() % in[0], plane = i / bands.count() / in[0];
      const Link* depths = backward.along[0].begin(z);
      const int64_t depth_count = backward.along[0].count(z);
      T* to = outbox.row(grad_input + (i / bands.count() * in[1] + begin) * in[2], (end - begin) * in[2]);
      const int64_t share = volume(out) / in[0] / bands.count(), then = i + 1 < last ? share : 0;
      const int64_t steps = (end - begin) * ((in[2] + kStride * n - 1) / (kStride * n));
      const Upcoming upcoming[] = {{grad + (i + 1) * share, then, steps}, {offsets + (i + 1) * share, then, steps}};
      for (int64_t x = 0; x < in[2]; x += kStride * n) {
        // The last vectors overlap those before, where there are any. Pairs of columns stay together.
        x = std::min(x, std::max<int64_t>(0, (in[2] - kStride * n + kStride - 1) / kStride * kStride));
        const int64_t window = kStride == 1 ? x + kPadded - 2 : x / 2 + kPadded - 1;
        // Copies of what is needed: the compiler must take it that the stores may change the originals.
        const auto run = [&](auto inner, const auto& ask) __attribute__((always_inline)) {
          const int64_t step = (x + kStride * n - 1) / (kStride * n) * (end - begin);
          const auto put = [=, p = to + x, width = in[2], grads = upcoming[0], taps = upcoming[1]](
                               int64_t y, const auto& row) __attribute__((always_inline)) {
            if (y < begin || y >= end) return;
            grads.ask(step + y - begin);
            taps.ask(step + y - begin);
            Vec<T> joined[kStride];
            join<T, kStride>(row.parts, joined);
#pragma GCC unroll 2
            for (int part = 0; part < kStride; ++part) {
              const int64_t count = inner ? n : std::min(n, width - x - part * n);
              if (count > 0) store_some(p + (y - begin) * width + part * n, joined[part], count);
            }
          };
          gather_down<kStride, kPadded, kFlat, T>(out, padding, depths, depth_count, begin, end, ask, put);
        };
        const T* own_grad = grad + plane * volume(out) + window;
        const uint8_t* own_offsets = offsets + plane * volume(out) + window;
        if (window >= 0 && window + n + kAsked - 1 <= out[2] && x + kStride * n <= in[2]) {
          run(std::true_type(), [=](int64_t at, Asked<T>(&asked)[kAsked]) __attribute__((always_inline)) {
#pragma GCC unroll 3
            for (int i = 0; i < kAsked; ++i) {
              asked[i] = {load(own_grad + at + i), load_offsets<T>(own_offsets + at + i)};
            }
          });
        } else {
          const Inside<T> left(window, out[2]), middle(window + 1, out[2]), right(window + 2, out[2]);
          run(std::false_type(), [=](int64_t at, Asked<T>(&asked)[kAsked]) __attribute__((always_inline)) {
            asked[0] = {left.of(own_grad + at), left.of(own_offsets + at)};
            asked[1] = {middle.of(own_grad + at + 1), middle.of(own_offsets + at + 1)};
            if constexpr (kAsked == 3) asked[2] = {right.of(own_grad + at + 2), right.of(own_offsets + at + 2)};
          });
        }
      }
    }
    outbox.close();
  });
}

// Whether the result was computed.
template <bool kOffsets, class T>
bool max_threes(const T* input, T* output, uint8_t* offsets, const Relation& forward) {
  int64_t padding;
  if (!takes_max_threes<T>(forward, true, padding)) return false;
  const bool flat = forward.links[0] == forward.result[0];
  const auto run = forward.columns.stride == 1
                       ? flat ? &max_of_threes<1, true, kOffsets, T> : &max_of_threes<1, false, kOffsets, T>
                   : flat ? &max_of_threes<2, true, kOffsets, T>
                          : &max_of_threes<2, false, kOffsets, T>;
  run(input, output, offsets, forward, padding);
  return true;
}

template <int kStride, bool kPadded, class T>
auto gather_threes_for(bool flat) {
  return flat ? &gather_threes<kStride, kPadded, true, T> : &gather_threes<kStride, kPadded, false, T>;
}

template <class T>
bool max_threes_backward(const T* grad, const uint8_t* offsets, T* grad_input, const Relation& backward) {
  int64_t padding;
  if (!takes_max_threes<T>(backward, false, padding)) return false;
  const bool padded = backward.columns.padding == 1;
  const bool flat =
      backward.result[0] == 1 && backward.source[0] == 1 && backward.links[0] == 1 && backward.along[0].links->tap == 0;
  const auto run = backward.columns.stride == 1
                       ? padded ? gather_threes_for<1, true, T>(flat) : gather_threes_for<1, false, T>(flat)
                   : padded ? gather_threes_for<2, true, T>(flat)
                            : gather_threes_for<2, false, T>(flat);
  run(grad, offsets, grad_input, backward, padding);
  return true;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
