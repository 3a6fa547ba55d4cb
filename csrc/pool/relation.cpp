#include "pool/relation.h"

#include <algorithm>

namespace scratchnn {

RelationTables::Entries RelationTables::entries(const PoolShape& shape, const Window& window) {
  Entries entries;
  int64_t taps = 1;  // of the dimensions after this one
  for (int dim = kSpatialRank - 1; dim >= 0; --dim) {
    for (int64_t o = 0; o < shape.output[dim]; ++o) {
      for (int64_t tap = 0; tap < window.kernel[dim]; ++tap) {
        const int64_t i = o * window.stride[dim] - window.padding[dim] + tap * window.dilation[dim];
        if (i >= 0 && i < shape.input[dim]) entries[dim].push_back({o, i, tap * taps, 1.0});
      }
    }
    taps *= window.kernel[dim];
  }
  return entries;
}

RelationTables::Entries RelationTables::entries(const PoolShape& shape, const Spans& spans) {
  Entries entries;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    for (int64_t o = 0; o < shape.output[dim]; ++o) {
      const Span& span = spans[dim][o];
      for (int64_t i = span.begin; i < span.end; ++i) {
        entries[dim].push_back({o, i, 0, static_cast<double>(span.divisor)});
      }
    }
  }
  return entries;
}

RelationTables::RelationTables(const PoolShape& shape, const Entries& entries, bool backward)
    : relation_{shape.images, shape.channels, shape.channels_last, shape.output, shape.input, {}, {}, 1} {
  if (backward) std::swap(relation_.result, relation_.source);
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    // A counting sort by result position; entries come by rising output and, within one, rising input, so
    // that every list comes out by rising source.
    auto& first = first_[dim];
    first.assign(relation_.result[dim] + 1, 0);
    for (const Entry& e : entries[dim]) ++first[(backward ? e.input : e.output) + 1];
    int64_t most = 0;
    for (int64_t i = 0; i < relation_.result[dim]; ++i) {
      most = std::max(most, first[i + 1]);
      first[i + 1] += first[i];
    }
    if (dim < kSpatialRank - 1) relation_.most_rows *= most;
    relation_.links[dim] = static_cast<int64_t>(entries[dim].size());
    links_[dim].resize(entries[dim].size());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (const Entry& e : entries[dim]) {
      links_[dim][next[backward ? e.input : e.output]++] = {backward ? e.output : e.input, e.tap,
                                                            backward ? 1.0 / e.divisor : e.divisor};
    }
  }
}

RelationTables RelationTables::forward(const PoolShape& shape, const Window& window) {
  return {shape, entries(shape, window), false};
}
RelationTables RelationTables::forward(const PoolShape& shape, const Spans& spans) {
  return {shape, entries(shape, spans), false};
}
RelationTables RelationTables::backward(const PoolShape& shape, const Window& window) {
  return {shape, entries(shape, window), true};
}
RelationTables RelationTables::backward(const PoolShape& shape, const Spans& spans) {
  return {shape, entries(shape, spans), true};
}

Relation RelationTables::view() const {
  Relation relation = relation_;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    relation.along[dim] = {first_[dim].data(), links_[dim].data()};
  }
  return relation;
}

}  // namespace scratchnn
