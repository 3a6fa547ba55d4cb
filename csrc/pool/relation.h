// Windows of all pooling layers, and the pixel relations (kernels.h) built from them.
#pragma once

#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>
#include <vector>

#include "common/geometry.h"
#include "pool/kernels.h"

namespace scratchnn {

// A list with an entry for each pixel along a dimension: on small images it needs no memory of its own.
template <class T>
using Short = c10::SmallVector<T, 12>;

// The arguments of sliding windows.
struct Window {
  Extent kernel, stride, padding, dilation;
};

// The input positions [begin, end) an output position averages over along one dimension, and its part of the divisor.
struct Span {
  int64_t begin, end, divisor;
};
using Spans = std::array<Short<Span>, kSpatialRank>;

// Adaptive pooling: output o of O covers the inputs floor(o I / O) to ceil((o + 1) I / O) - 1.
Spans adaptive_spans(const PoolShape& shape);

// Whether max_pool_backward_kernel serves these windows; scatter_gradients (chosen.h) serves all.
bool is_gathered(const PoolShape& shape, const Windows& windows);

// Owns the lists a PlaneWindows points into.
class WindowTables {
 public:
  static WindowTables sliding(const PoolShape& shape, const Window& window);
  static WindowTables adaptive(const PoolShape& shape);
  // begin[dim] lists the window's beginnings along a dimension, plane after plane.
  static WindowTables fractional(const PoolShape& shape, const Extent& kernel,
                                 std::array<Short<int64_t>, kSpatialRank> begin);

  // Valid while this object stays where it is.
  PlaneWindows view();
  const Extent& taps() const { return taps_; }

 private:
  WindowTables(const Extent& taps, bool same) : taps_(taps), same_(same) {}

  Extent taps_;
  bool same_;  // for all planes
  std::array<Short<int64_t>, kSpatialRank> begin_, count_;
  c10::SmallVector<Windows, 1> windows_;
};

// Owns the lists a Relation points into.
class RelationTables {
 public:
  static RelationTables forward(const PoolShape& shape, const Windows& windows);
  static RelationTables forward(const PoolShape& shape, const Spans& spans, const EvenColumns& columns);
  static RelationTables backward(const PoolShape& shape, const Windows& windows);
  static RelationTables backward(const PoolShape& shape, const Spans& spans, const EvenColumns& columns);

  Relation view() const;

 private:
  template <class AnyWindows>
  RelationTables(const PoolShape& shape, const AnyWindows& windows, const EvenColumns& columns, bool backward);

  Relation relation_;  // all but the pointers
  std::array<Short<int64_t>, kSpatialRank> first_;
  std::array<Short<Link>, kSpatialRank> links_;
};

}  // namespace scratchnn
