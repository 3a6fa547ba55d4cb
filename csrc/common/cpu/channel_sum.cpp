// The sum over everything but the channels, in one pass at memory speed.
//
// Short runs are summed in the tensor's own type, then added up in double: no loss of accuracy over millions of
// pixels. The runs, and the order they are added in, do not depend on the number of threads.
#include "common/channel_sum.h"

#include <algorithm>

#include "common/runtime.h"
#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kRun = 16;     // pixels (channels last) or vectors (contiguous) summed in the tensor's type
constexpr int64_t kChunks = 16;  // of the pixels, at most

// Channels last: rows of C numbers. Each chunk of rows has sums of its own.
template <class T>
void sum_rows(const T* data, int64_t rows, int64_t channels, T* sums) {
  const int64_t chunks = std::clamp<int64_t>(rows / kRun, 1, kChunks);
  double* partial = scratch<double>(chunks * channels, Scratch::kCall);
  parallel_for(0, chunks, 1 + 16384 / std::max<int64_t>(1, rows / chunks * channels), [&](int64_t begin, int64_t end) {
    T* run = scratch<T>(channels);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      double* own = partial + chunk * channels;
      std::fill(own, own + channels, 0.0);
      const int64_t last = rows * (chunk + 1) / chunks;
      for (int64_t first = rows * chunk / chunks; first < last; first += kRun) {
        std::fill(run, run + channels, T(0));
        for (int64_t row = first; row < std::min(last, first + kRun); ++row) {
          const T* from = data + row * channels;
          int64_t c = 0;
          for (; c + kLanes<T> <= channels; c += kLanes<T>) store(run + c, load(run + c) + load(from + c));
          for (; c < channels; ++c) run[c] += from[c];
        }
        for (int64_t c = 0; c < channels; ++c) own[c] += static_cast<double>(run[c]);
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * channels + c];
    sums[c] = static_cast<T>(sum);
  }
}

// Contiguous: for each channel, one plane of pixels in each image.
template <class T>
void sum_planes(const T* data, int64_t batch, int64_t channels, int64_t pixels, T* sums) {
  parallel_for(0, channels, 1 + 16384 / std::max<int64_t>(1, batch * pixels), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < batch; ++n) {
        const T* plane = data + (n * channels + c) * pixels;
        int64_t i = 0;
        while (i + kLanes<T> <= pixels) {
          Vec<T> run = {};
          for (int64_t k = 0; k < kRun && i + kLanes<T> <= pixels; ++k, i += kLanes<T>) run += load(plane + i);
          sum += static_cast<double>(horizontal_sum<T>(run));
        }
        for (; i < pixels; ++i) sum += static_cast<double>(plane[i]);
      }
      sums[c] = static_cast<T>(sum);
    }
  });
}

template <class T>
void channel_sum(Images<const T> images, int64_t batch, T* sums) {
  if (images.channels_last) {
    sum_rows(images.data, batch * images.pixels(), images.channels, sums);
  } else {
    sum_planes(images.data, batch, images.channels, images.pixels(), sums);
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<float>, &channel_sum<float>);
SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<double>, &channel_sum<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
