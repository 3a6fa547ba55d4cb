#include "pool/relation.h"

#include <algorithm>
#include <utility>

namespace scratchnn {

Spans adaptive_spans(const PoolShape& shape) {
  Spans spans;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    const int64_t in = shape.input[dim], out = shape.output[dim];
    spans[dim].reserve(out);
    for (int64_t o = 0; o < out; ++o) {
      // o in / out, without overflow.
      const int64_t begin = o / out * in + o % out * in / out;
      const int64_t end = 1 + ((o + 1) * in - 1) / out;
      spans[dim].push_back({begin, end, end - begin});
    }
  }
  return spans;
}

WindowTables WindowTables::sliding(const PoolShape& shape, const Window& window) {
  WindowTables tables(window.kernel, true);
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    tables.begin_[dim].reserve(shape.output[dim]);
    for (int64_t o = 0; o < shape.output[dim]; ++o) {
      tables.begin_[dim].push_back(o * window.stride[dim] - window.padding[dim]);
    }
    tables.count_[dim].assign(shape.output[dim], window.kernel[dim]);
  }
  tables.windows_.push_back({window.kernel, window.stride, window.dilation, {}, {}});
  return tables;
}

WindowTables WindowTables::adaptive(const PoolShape& shape) {
  WindowTables tables({1, 1, 1}, true);
  Windows windows{{1, 1, 1}, {0, 0, 0}, {1, 1, 1}, {}, {}};
  const Spans spans = adaptive_spans(shape);
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    for (const Span& span : spans[dim]) {
      tables.begin_[dim].push_back(span.begin);
      tables.count_[dim].push_back(span.end - span.begin);
    }
    // No window is longer, and the fake kernels, which do not list them, know this number as well.
    const int64_t in = shape.input[dim], out = shape.output[dim];
    if (out > 0) windows.taps[dim] = in % out == 0 ? in / out : in / out + 2;
    if (out > 0 && in % out == 0) windows.stride[dim] = in / out;
  }
  tables.taps_ = windows.taps;
  tables.windows_.push_back(windows);
  return tables;
}

WindowTables WindowTables::fractional(const PoolShape& shape, const Extent& kernel,
                                      std::array<Short<int64_t>, kSpatialRank> begin) {
  WindowTables tables(kernel, false);
  tables.begin_ = std::move(begin);
  for (int dim = 0; dim < kSpatialRank; ++dim) tables.count_[dim].assign(shape.output[dim], kernel[dim]);
  tables.windows_.assign(shape.images * shape.channels, {kernel, {0, 0, 0}, {1, 1, 1}, {}, {}});
  return tables;
}

PlaneWindows WindowTables::view() {
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    for (size_t plane = 0; plane < windows_.size(); ++plane) {
      windows_[plane].begin[dim] = begin_[dim].data() + plane * count_[dim].size();
      windows_[plane].count[dim] = count_[dim].data();
    }
  }
  return {windows_.data(), same_};
}

namespace {

// Along one dimension, visit(output, input, tap, divisor) for every input position of every window, by rising output
// and, within one, rising input. `tap` is this dimension's part of the tap's number.
template <class Visit>
void for_each_link(const PoolShape& shape, const Windows& windows, int dim, const Visit& visit) {
  int64_t taps = 1;  // of the dimensions after this one
  for (int after = dim + 1; after < kSpatialRank; ++after) taps *= windows.taps[after];
  const int64_t dilation = windows.dilation[dim];
  for (int64_t o = 0; o < shape.output[dim]; ++o) {
    // The taps inside the input, however many are outside.
    const int64_t begin = windows.begin[dim][o];
    const int64_t first = begin < 0 ? (-begin + dilation - 1) / dilation : 0;
    for (int64_t tap = first; tap < windows.count[dim][o]; ++tap) {
      const int64_t i = begin + tap * dilation;
      if (i >= shape.input[dim]) break;
      visit(o, i, tap * taps, 1.0);
    }
  }
}
template <class Visit>
void for_each_link(const PoolShape& shape, const Spans& spans, int dim, const Visit& visit) {
  for (int64_t o = 0; o < shape.output[dim]; ++o) {
    const Span& span = spans[dim][o];
    for (int64_t i = span.begin; i < span.end; ++i) visit(o, i, 0, static_cast<double>(span.divisor));
  }
}

// Of windows that there are any of.
EvenColumns even_columns(const Windows& windows) {
  if (windows.stride[2] == 0) return {};
  return {windows.taps[2], windows.stride[2], windows.dilation[2], -windows.begin[2][0]};
}

}  // namespace

bool is_gathered(const PoolShape& shape, const Windows& windows) {
  constexpr int64_t kFewest = 8;  // numbers that a vector is worth loading for
  constexpr int64_t kMostTaps = 32, kLongest = 256;
  if (shape.channels_last) return shape.channels >= kFewest;
  const EvenColumns columns = even_columns(windows);
  // Every window is asked about every pixel it holds.
  return columns.taps > 0 && columns.stride <= kMostParts && columns.taps * columns.dilation <= kLongest &&
         volume(windows.taps) <= kMostTaps && shape.input[2] >= kFewest;
}

template <class AnyWindows>
RelationTables::RelationTables(const PoolShape& shape, const AnyWindows& windows, const EvenColumns& columns,
                               bool backward)
    : relation_{shape.images, shape.channels, shape.channels_last, shape.output, shape.input, {}, {}, 1, columns} {
  if (backward) std::swap(relation_.result, relation_.source);
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    // A counting sort by result position; links come by rising output and, within one, rising input, so that every
    // list comes out by rising source.
    auto& first = first_[dim];
    first.assign(relation_.result[dim] + 1, 0);
    for_each_link(shape, windows, dim,
                  [&](int64_t output, int64_t input, int64_t, double) { ++first[(backward ? input : output) + 1]; });
    int64_t most = 0;
    for (int64_t i = 0; i < relation_.result[dim]; ++i) {
      most = std::max(most, first[i + 1]);
      first[i + 1] += first[i];
    }
    if (dim < kSpatialRank - 1) relation_.most_rows *= most;
    relation_.links[dim] = first.back();
    auto& links = links_[dim];
    links.resize(first.back());
    Short<int64_t> next(first.begin(), first.end() - 1);
    for_each_link(shape, windows, dim, [&](int64_t output, int64_t input, int64_t tap, double divisor) {
      if (backward) {
        links[next[input]++] = {output, tap, 1.0 / divisor};
      } else {
        links[next[output]++] = {input, tap, divisor};
      }
    });
  }
}

RelationTables RelationTables::forward(const PoolShape& shape, const Windows& windows) {
  return {shape, windows, even_columns(windows), false};
}
RelationTables RelationTables::forward(const PoolShape& shape, const Spans& spans, const EvenColumns& columns) {
  return {shape, spans, columns, false};
}
RelationTables RelationTables::backward(const PoolShape& shape, const Windows& windows) {
  return {shape, windows, even_columns(windows), true};
}
RelationTables RelationTables::backward(const PoolShape& shape, const Spans& spans, const EvenColumns& columns) {
  return {shape, spans, columns, true};
}

Relation RelationTables::view() const {
  Relation relation = relation_;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    relation.along[dim] = {first_[dim].data(), links_[dim].data()};
  }
  return relation;
}

}  // namespace scratchnn
