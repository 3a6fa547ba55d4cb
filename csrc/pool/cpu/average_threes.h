// Averages of contiguous planes over windows of 3x3 that step by one, as in Inception: forward and back the same sums
// of neighbours.
#pragma once

#include "pool/cpu/threes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Result pixel (y, x) is the sum of the source pixels [y + top, y + top + 3) x [x + left, x + left + 3), those outside
// of the plane left out, times `share`.
struct Threes {
  int64_t top, left;
  double share;
};

// Whether a relation is so, and a row of results is a vector or more; `left` as above.
template <class T>
bool takes_threes(const Relation& relation, int64_t left, Threes& threes) {
  const EvenColumns& columns = relation.columns;
  const Links &depth = relation.along[0], &rows = relation.along[1], &along = relation.along[2];
  const Extent &result = relation.result, &source = relation.source;
  if (relation.channels_last || columns.taps != 3 || columns.stride != 1 || columns.dilation != 1) return false;
  if (result[0] != 1 || source[0] != 1 || depth.count(0) != 1 || source[1] < 3 || result[2] < kLanes<T>) return false;
  int64_t y = 0;
  while (y < result[1] && rows.count(y) != 3) ++y;
  if (y == result[1]) return false;
  threes = {rows.begin(y)->source - y, left, depth.links->factor * rows.links->factor * along.links->factor};
  const auto alike = [](const Links& links, int64_t count) {
    return std::all_of(links.begin(0), links.begin(count),
                       [&](const Link& link) { return link.factor == links.links->factor; });
  };
  if (!alike(rows, result[1]) || !alike(along, result[2])) return false;
  for (y = 0; y < result[1]; ++y) {
    const int64_t first = std::max<int64_t>(0, y + threes.top), last = std::min(source[1], y + threes.top + 3);
    if (rows.count(y) != last - first) return false;
    for (int64_t r = first; r < last; ++r) {
      if (rows.begin(y)[r - first].source != r) return false;
    }
  }
  return true;
}

// A vector of columns of the result rows [y, y + count): three(p) sums up the three of a row whose first is at p.
template <class T, class Three, class Finish>
SCRATCHNN_INLINE void go_down(const T* column, int64_t stride, int64_t height, int64_t y, int64_t count, T* to,
                              int64_t to_stride, const Three& three, const Finish& finish) {
  const auto row = [&](int64_t i) __attribute__((always_inline)) {
    return i >= 0 && i < height ? three(column + i * stride) : Vec<T>{};
  };
  Vec<T> above = row(y), here = row(y + 1);
  for (const int64_t end = y + count; y < end; ++y, to += to_stride) {
    const Vec<T> below = row(y + 2);
    store(to, finish((above + here) + below));
    above = here;
    here = below;
  }
}

// Sums are divided forward, and multiplied backward.
template <bool forward, class T>
void walk_threes(const T* source, T* result, const Relation& relation, const Threes& threes) {
  const int64_t planes = relation.images * relation.channels;
  const int64_t height = relation.source[1], width = relation.source[2];
  const int64_t out_height = relation.result[1], out_width = relation.result[2];
  const Bands<T> bands(relation.result);
  const bool large = is_large<T>(planes * volume(relation.result));
  const Vec<T> share = broadcast(static_cast<T>(threes.share));
  const auto finish = [&](Vec<T> sum) __attribute__((always_inline)) { return forward ? sum / share : sum * share; };
  const int64_t grain = std::max<int64_t>(1, kGrain / (bands.rows() * (width + out_width)));
  parallel_for(0, planes * bands.count(), grain, [&](int64_t first, int64_t last) {
    Outbox<T> outbox(large, scratch<T>(Outbox<T>::kRoom));
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = bands.begin(i % bands.count()), count = bands.begin(i % bands.count() + 1) - begin;
      const int64_t plane = i / bands.count();
      const T* from = source + plane * height * width;
      T* to = outbox.row(result + (plane * out_height + begin) * out_width, count * out_width);
      for_each_whole_vector<T>(out_width, [&](int64_t x) {
        const int64_t at = x + threes.left, y = begin + threes.top;
        if (at >= 0 && at + kLanes<T> + 2 <= width) {
          go_down<T>(
              from + at, width, height, y, count, to + x, out_width,
              [](const T* p) __attribute__((always_inline)) { return (load(p) + load(p + 1)) + load(p + 2); }, finish);
        } else {
          const Inside<T> left(at, width), middle(at + 1, width), right(at + 2, width);
          go_down<T>(
              from + at, width, height, y, count, to + x, out_width,
              [&](const T* p)
                  __attribute__((always_inline)) { return (left.of(p) + middle.of(p + 1)) + right.of(p + 2); },
              finish);
        }
      });
    }
    outbox.close();
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
