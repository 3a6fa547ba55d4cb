// The sums of a weight gradient that is computed as matrix products: how they lie in memory, and who computes which.
//
// The sum runs over all pixels of the batch, so it is cut into chunks, a fixed number whatever the number of
// threads, each with sums of its own that are added up in order at the end: the result is the same for any number
// of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "conv/cpu/band.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// A row of sums, those of one output channel: segments of taps that lie side by side in the input, each rounded up to
// whole tiles. Which taps form a segment depends on whether the band is a copy, so it always is one (unless
// `in_place`, where there is a single tap, and no vector reads past a pixel's channels).
//
// Where short segments would leave much of their tiles empty, as with three input channels, the pixels' patches are
// written out after all, a band at a time: then all taps are one segment.
template <class T>
struct SumLayout {
  static constexpr int64_t kColumns = kTileColumns<T>;

  SumLayout(const ConvGeometry& g, const Correlation& correlation, const Rectangle& largest)
      : channels(g.group_in()), patch(g.taps() * channels), in_place(g.taps() == 1 && channels % kLanes<T> == 0) {
    const PixelView<T> copy{
        nullptr, {largest.size[1] * largest.size[2] * channels, largest.size[2] * channels, channels}, 0};
    segments_of(correlation, correlation.first_offset(), copy, channels, segments);
    writes_patches = !in_place && 5 * width() > 6 * round_up(patch, kColumns);
    if (writes_patches) segments = {{0, patch}};
  }

  int64_t width() const {
    int64_t sum = 0;
    for (const Segment& segment : segments) sum += round_up(segment.length, kColumns);
    return sum;
  }

  // Row `row` to the gradient of one output channel.
  template <class S>
  void write(const T* row, S* to, const Filters<S>& filters) const {
    int64_t tap = 0, channel = 0;
    for (const Segment& segment : segments) {
      for (int64_t i = 0, count; i < segment.length; i += count) {
        count = std::min(segment.length - i, channels - channel);
        S* out = to + channel * filters.in_stride + tap * filters.tap_stride;
        if (filters.in_stride == 1) {
          copy_numbers(row + i, count, out);
        } else {
          for (int64_t c = 0; c < count; ++c) write_one(out + c * filters.in_stride, row[i + c]);
        }
        channel += count;
        if (channel == channels) {
          channel = 0;
          ++tap;
        }
      }
      row += round_up(segment.length, kColumns);
    }
  }

  int64_t channels;  // of a group, in
  int64_t patch;     // numbers of one
  bool in_place, writes_patches;
  std::vector<Segment> segments;
};

// Chunks of bands times blocks of output channels: the tasks.
class WeightTasks {
 public:
  struct Task {
    int64_t chunk;
    Range groups, rows, bands;  // rows: output channels of each of the groups
  };

  // For rows of `width` sums T; a task has at least `fewest_rows`, if there are as many.
  template <class T>
  static WeightTasks of(const ConvGeometry& g, const Bands& bands, int64_t width, int64_t fewest_rows) {
    constexpr int64_t kChunks = 16;             // of the batch, at most
    constexpr int64_t kChunkPixels = 1536;      // a chunk is worth its sums from here on
    constexpr int64_t kTasksPerThread = 4;      // about
    constexpr int64_t kSumsBytes = 64ll << 20;  // for the sums of all chunks together, at most
    WeightTasks tasks;
    tasks.out_channels_ = g.group_out();
    tasks.groups_ = g.groups;
    tasks.bands_ = bands.total();
    const int64_t bytes = g.out_channels * width * static_cast<int64_t>(sizeof(T));
    const int64_t affordable = kSumsBytes / std::max<int64_t>(1, bytes);
    const int64_t worth = g.batch * volume(g.output) / kChunkPixels;
    tasks.chunks_ = std::clamp<int64_t>(std::min({affordable, worth, bands.total()}), 1, kChunks);
    const int64_t wanted = kTasksPerThread * thread_count();
    const int64_t rows = std::max(fewest_rows, (g.out_channels * tasks.chunks_ + wanted - 1) / wanted);
    tasks.blocks_ = std::max<int64_t>(1, tasks.out_channels_ / rows);
    tasks.groups_together_ = std::clamp<int64_t>(rows / tasks.out_channels_, 1, g.groups);
    tasks.of_chunk_ = (g.groups + tasks.groups_together_ - 1) / tasks.groups_together_ * tasks.blocks_;
    return tasks;
  }

  int64_t chunks() const { return chunks_; }
  int64_t total() const { return chunks_ * of_chunk_; }

  Task operator[](int64_t index) const {
    const int64_t chunk = index / of_chunk_, first_group = index % of_chunk_ / blocks_ * groups_together_;
    const int64_t block = index % blocks_;
    return {chunk,
            {first_group, std::min(groups_, first_group + groups_together_)},
            {out_channels_ * block / blocks_, out_channels_ * (block + 1) / blocks_},
            {bands_ * chunk / chunks_, bands_ * (chunk + 1) / chunks_}};
  }

 private:
  int64_t out_channels_, groups_, bands_;  // out_channels of a group
  int64_t chunks_, blocks_, groups_together_, of_chunk_;
};

// Adds up the chunks of `size` sums each, in order, and writes the gradient of the output channels `rows`.
template <class T, class S>
void finish_sums(const SumLayout<T>& layout, T* sums, int64_t chunks, int64_t size, const Range& rows,
                 const Filters<S>& grad_weight) {
  const int64_t width = layout.width();
  for (int64_t k = rows.first; k < rows.last; ++k) {
    T* row = sums + k * width;
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const T* other = row + chunk * size;
      for (int64_t i = 0; i < width; i += kLanes<T>) store(row + i, load(row + i) + load(other + i));
    }
    layout.write(row, grad_weight.data + k * grad_weight.out_stride, grad_weight);
  }
}

// Runs all tasks: body(begin, end) computes those, each of which calls finish(output channels) when its sums are
// complete. Where several chunks have sums of the same weights, the last step is for later.
template <class T, class S, class Body>
void run_weight_tasks(const WeightTasks& tasks, const SumLayout<T>& layout, int64_t out_channels, T* sums,
                      const Filters<S>& grad_weight, const Body& body) {
  const int64_t chunks = tasks.chunks(), size = out_channels * layout.width();
  parallel_for(0, tasks.total(), 1, [&](int64_t begin, int64_t end) {
    body(begin, end, [&](const Range& rows) {
      if (chunks == 1) finish_sums(layout, sums, 1, size, rows, grad_weight);
    });
  });
  if (chunks == 1) return;
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, layout.width() * chunks);
  parallel_for(0, out_channels, grain, [&](int64_t first, int64_t last) {
    finish_sums(layout, sums, chunks, size, {first, last}, grad_weight);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
