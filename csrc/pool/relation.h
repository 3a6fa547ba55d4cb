// Windows of all pooling layers, and the pixel relations (kernels.h) built from them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "common/geometry.h"
#include "pool/kernels.h"

namespace scratchnn {

// Any windows: along one dimension, the input positions [begin, end) an output position averages over, and
// its part of the divisor.
struct Span {
  int64_t begin, end, divisor;
};
using Spans = std::array<std::vector<Span>, kSpatialRank>;

// Owns the lists a Relation points into.
class RelationTables {
 public:
  static RelationTables forward(const PoolShape& shape, const Window& window);
  static RelationTables forward(const PoolShape& shape, const Spans& spans);
  static RelationTables backward(const PoolShape& shape, const Window& window);
  static RelationTables backward(const PoolShape& shape, const Spans& spans);

  Relation view() const;

 private:
  struct Entry {
    int64_t output, input, tap;
    double divisor;
  };
  using Entries = std::array<std::vector<Entry>, kSpatialRank>;

  RelationTables(const PoolShape& shape, const Entries& entries, bool backward);
  static Entries entries(const PoolShape& shape, const Window& window);
  static Entries entries(const PoolShape& shape, const Spans& spans);

  Relation relation_;  // all but the pointers
  std::array<std::vector<int64_t>, kSpatialRank> first_;
  std::array<std::vector<Link>, kSpatialRank> links_;
};

}  // namespace scratchnn
