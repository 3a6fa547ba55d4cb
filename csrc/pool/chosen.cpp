#include "pool/chosen.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/runtime.h"

namespace scratchnn {
namespace {

// Numbers read or written that make a thread worth waking.
constexpr int64_t kGrain = 32768;

// Dilation can put all taps of a window outside the input. Its dimension then has no other window: padding is at most
// half a window, so that takes two taps, one on each side.
bool lie_in_padding(const PoolShape& shape, const Windows& windows) {
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    bool inside = false;
    for (int64_t k = 0; k < windows.count[dim][0] && !inside; ++k) {
      const int64_t i = windows.begin[dim][0] + k * windows.dilation[dim];
      inside = i >= 0 && i < shape.input[dim];
    }
    if (!inside) return true;
  }
  return false;
}

// From the first tap of any window to each of its taps, in pixels.
template <class Offset>
class Steps {
 public:
  Steps(const PoolShape& shape, const Windows& windows)
      : taps_(windows.taps), count_(volume(windows.taps)), pixels_(volume(shape.input)) {
    const Extent& in = shape.input;
    const Extent& dilation = windows.dilation;
    step_ = {dilation[0] * in[1] * in[2], dilation[1] * in[2], dilation[2]};
    for (int64_t tap = 0; tap < std::min(count_, kListed); ++tap) steps_.push_back(step(tap));
    if (steps_.size() < 256) steps_.resize(256);  // any byte has a step
  }

  // The pixel under a tap of the window whose first tap is at `start`, or -1: no pixel.
  int64_t pixel(int64_t start, Offset tap) const {
    if constexpr (sizeof(Offset) > 1) {
      if (tap < 0 || tap >= count_) return -1;
    }
    const int64_t p = start + (sizeof(Offset) == 1 || tap < kListed ? steps_[tap] : step(tap));
    return p < pixels_ ? std::max<int64_t>(p, -1) : -1;
  }

 private:
  static constexpr int64_t kListed = 65536;  // divisions are slow, but a window may be larger than the input

  int64_t step(int64_t tap) const {
    return tap / (taps_[1] * taps_[2]) * step_[0] + tap / taps_[2] % taps_[1] * step_[1] + tap % taps_[2] * step_[2];
  }

  Extent taps_, step_;
  int64_t count_, pixels_;
  std::vector<int64_t> steps_;
};

// row(place, start) for every output row (z, y) of a plane: the number of its first pixel, and where, in depth and
// height, its windows begin in the input.
template <class Row>
void for_each_row(const PoolShape& shape, const Windows& windows, const Row& row) {
  for (int64_t z = 0; z < shape.output[0]; ++z) {
    for (int64_t y = 0; y < shape.output[1]; ++y) {
      row((z * shape.output[1] + y) * shape.output[2],
          (windows.begin[0][z] * shape.input[1] + windows.begin[1][y]) * shape.input[2]);
    }
  }
}

// body(n, c, place, pixel) for every output: its image, channel and place in memory, and the pixel it chose, or -1.
template <class Offset, class Body>
void for_each_chosen(const Offset* offsets, const PoolShape& shape, const PlaneWindows& windows, const Body& body) {
  const int64_t pixels = volume(shape.output), channels = shape.channels;
  const bool none = lie_in_padding(shape, windows.of(0));
  const Steps<Offset> steps(shape, windows.of(0));
  if (!shape.channels_last) {
    const int64_t grain = std::max<int64_t>(1, kGrain / pixels);
    parallel_for(0, shape.images * channels, grain, [&](int64_t first, int64_t last) {
      for (int64_t plane = first; plane < last; ++plane) {
        const Windows& own = windows.of(plane);
        for_each_row(shape, own, [&](int64_t pixel, int64_t start) {
          for (int64_t x = 0; x < shape.output[2]; ++x) {
            const int64_t place = plane * pixels + pixel + x;
            body(plane / channels, plane % channels, place,
                 none ? -1 : steps.pixel(start + own.begin[2][x], offsets[place]));
          }
        });
      }
    });
    return;
  }
  const Windows& all = windows.of(0);
  const int64_t height = shape.output[1], rows = shape.output[0] * height;
  const int64_t grain = std::max<int64_t>(1, kGrain / (shape.output[2] * channels));
  parallel_for(0, shape.images * rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t z = i % rows / height, y = i % height;
      const int64_t row = (all.begin[0][z] * shape.input[1] + all.begin[1][y]) * shape.input[2];
      for (int64_t x = 0; x < shape.output[2]; ++x) {
        const int64_t place = (i * shape.output[2] + x) * channels, start = row + all.begin[2][x];
        for (int64_t c = 0; c < channels; ++c) {
          body(i / rows, c, place + c, none ? -1 : steps.pixel(start, offsets[place + c]));
        }
      }
    }
  });
}

}  // namespace

template <class T, class Offset>
void scatter_gradients(const T* grad, const Offset* offsets, T* grad_input, const PoolShape& shape,
                       const PlaneWindows& windows) {
  const Images<const T> dy{grad, shape.channels, shape.output, shape.channels_last};
  const Images<T> dx{grad_input, shape.channels, shape.input, shape.channels_last};
  const int64_t stride = dx.pixel_stride(), pixels = dx.pixels();
  const bool none = lie_in_padding(shape, windows.of(0));
  const Steps<Offset> steps(shape, windows.of(0));
  const int64_t grain = std::max<int64_t>(1, kGrain / (pixels + dy.pixels()));
  // One thread a plane, so that the sums need no locks and have a fixed order.
  parallel_for(0, shape.images * shape.channels, grain, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t n = plane / shape.channels, c = plane % shape.channels;
      const Windows& own = windows.of(plane);
      const int64_t from = n * dy.image_stride() + c * dy.channel_stride();
      T* to = grad_input + n * dx.image_stride() + c * dx.channel_stride();
      if (stride == 1) {
        std::fill_n(to, pixels, T(0));
      } else {
        for (int64_t p = 0; p < pixels; ++p) to[p * stride] = T(0);
      }
      if (none) continue;
      for_each_row(shape, own, [&](int64_t pixel, int64_t start) {
        for (int64_t x = 0; x < shape.output[2]; ++x) {
          const int64_t place = from + (pixel + x) * stride;
          const int64_t p = steps.pixel(start + own.begin[2][x], offsets[place]);
          if (p >= 0) to[p * stride] += grad[place];
        }
      });
    }
  });
}

template <class T, class Offset>
void gather_chosen(const T* input, const Offset* offsets, T* output, const PoolShape& shape,
                   const PlaneWindows& windows) {
  const Images<const T> x{input, shape.channels, shape.input, shape.channels_last};
  for_each_chosen(offsets, shape, windows, [&](int64_t n, int64_t c, int64_t place, int64_t pixel) {
    output[place] = pixel < 0 ? T(0) : input[n * x.image_stride() + c * x.channel_stride() + pixel * x.pixel_stride()];
  });
}

template <class Offset>
void chosen_indices(const Offset* offsets, int64_t* indices, const PoolShape& shape, const PlaneWindows& windows) {
  for_each_chosen(offsets, shape, windows,
                  [&](int64_t, int64_t, int64_t place, int64_t pixel) { indices[place] = pixel; });
}

#define SCRATCHNN_CHOSEN(T, Offset) \
  template void gather_chosen<T, Offset>(const T*, const Offset*, T*, const PoolShape&, const PlaneWindows&)
#define SCRATCHNN_CHOSEN_BY(Offset)                                                                        \
  template void scatter_gradients<float, Offset>(const float*, const Offset*, float*, const PoolShape&,    \
                                                 const PlaneWindows&);                                     \
  template void scatter_gradients<double, Offset>(const double*, const Offset*, double*, const PoolShape&, \
                                                  const PlaneWindows&);                                    \
  template void chosen_indices<Offset>(const Offset*, int64_t*, const PoolShape&, const PlaneWindows&);    \
  SCRATCHNN_CHOSEN(float, Offset);                                                                         \
  SCRATCHNN_CHOSEN(double, Offset);                                                                        \
  SCRATCHNN_CHOSEN(c10::Half, Offset);                                                                     \
  SCRATCHNN_CHOSEN(c10::BFloat16, Offset)

SCRATCHNN_CHOSEN_BY(uint8_t);
SCRATCHNN_CHOSEN_BY(int32_t);

}  // namespace scratchnn
