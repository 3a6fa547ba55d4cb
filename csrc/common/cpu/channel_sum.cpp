// The sum over everything but the channels, in one pass at memory speed.
//
// Short runs are summed in the tensor's own type, half precision in float, then added up in double: no loss of accuracy
// over millions of pixels. The runs, and the order they are added in, do not depend on the number of threads.
#include "common/channel_sum.h"

#include <algorithm>

#include "common/half.h"
#include "common/runtime.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kRun = 16;     // pixels (channels last) or vectors (contiguous) summed in the tensor's type
constexpr int64_t kChunks = 16;  // of the pixels, at most

// Channels last: rows of C numbers. Each chunk of rows has sums of its own.
template <class S>
void sum_rows(const S* data, int64_t rows, int64_t channels, S* sums) {
  using T = Wide<S>;
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
          const S* from = data + row * channels;
          int64_t c = 0;
          for (; c + kLanes<T> <= channels; c += kLanes<T>) store(run + c, load(run + c) + read(from + c));
          for (; c < channels; ++c) run[c] += read_one(from + c);
        }
        for (int64_t c = 0; c < channels; ++c) own[c] += static_cast<double>(run[c]);
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * channels + c];
    write_one(sums + c, static_cast<T>(sum));
  }
}

// Contiguous: for each channel, one plane of pixels in each image.
template <class S>
void sum_planes(const S* data, int64_t batch, int64_t channels, int64_t pixels, S* sums) {
  using T = Wide<S>;
  parallel_for(0, channels, 1 + 16384 / std::max<int64_t>(1, batch * pixels), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < batch; ++n) {
        const S* plane = data + (n * channels + c) * pixels;
        int64_t i = 0;
        while (i + kLanes<T> <= pixels) {
          Vec<T> run = {};
          for (int64_t k = 0; k < kRun && i + kLanes<T> <= pixels; ++k, i += kLanes<T>) run += read(plane + i);
          sum += static_cast<double>(horizontal_sum<T>(run));
        }
        for (; i < pixels; ++i) sum += static_cast<double>(read_one(plane + i));
      }
      write_one(sums + c, static_cast<T>(sum));
    }
  });
}

template <class S>
void channel_sum(Images<const S> images, int64_t batch, S* sums) {
  if (images.channels_last) {
    sum_rows(images.data, batch * images.pixels(), images.channels, sums);
  } else {
    sum_planes(images.data, batch, images.channels, images.pixels(), sums);
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<float>, &channel_sum<float>);
SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<double>, &channel_sum<double>);
SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<BFloat16>, &channel_sum<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(channel_sum_kernel<Half>, &channel_sum<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
