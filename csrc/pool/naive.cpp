// The pooling layers straight from their formulas: nested loops over images, channels, pixels and windows.
//
// scratchnn.kernels("naive") runs these loops, the tests hold the fast kernels against them, and they serve the types
// that the fast ones do not. x and its gradient dx are N x C x pixels i, y and the gradient dy that arrives at it
// N x C x pixels o, each with one to three spatial dimensions; o names a window, k a tap of it.
#include "pool/naive.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/runtime.h"

namespace scratchnn::naive {
namespace {

// Calls body(plane, n, c) for every channel c of every image n; several planes at a time, on several threads.
template <class Body>
void for_each_plane(const PoolShape& shape, const Body& body) {
  parallel_for(0, shape.images * shape.channels, 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) body(plane, plane / shape.channels, plane % shape.channels);
  });
}

// Calls body(o, place) for every output pixel o of a plane, and its place in the output's memory.
template <class Body>
void for_each_output(const PoolShape& shape, int64_t n, int64_t c, const Body& body) {
  const Images<const char> output{nullptr, shape.channels, shape.output, shape.channels_last};
  int64_t place = n * output.image_stride() + c * output.channel_stride();
  for (int64_t od = 0; od < shape.output[0]; ++od) {
    for (int64_t oh = 0; oh < shape.output[1]; ++oh) {
      for (int64_t ow = 0; ow < shape.output[2]; ++ow, place += output.pixel_stride()) body(Extent{od, oh, ow}, place);
    }
  }
}

// Pixel i of the input: its place within the plane, counted in pixels.
int64_t pixel(const Extent& i, const Extent& size) {
  return (i[0] * size[1] + i[1]) * size[2] + i[2];
}

// Along one dimension, the input position under tap k of output o's window; for sliding windows, o S - P + k D.
int64_t position(const Windows& windows, int dim, int64_t o, int64_t k) {
  return windows.begin[dim][o] + k * windows.dilation[dim];
}

bool inside(int64_t i, int64_t size) {
  return i >= 0 && i < size;
}

// The input pixel that an offset names, or -1 where that lies outside the input.
int64_t chosen_pixel(const Extent& o, int64_t offset, const PoolShape& shape, const Windows& windows) {
  const Extent& taps = windows.taps;
  const Extent k{offset / (taps[1] * taps[2]), offset / taps[2] % taps[1], offset % taps[2]};
  Extent i;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    i[dim] = position(windows, dim, o[dim], k[dim]);
    if (!inside(i[dim], shape.input[dim])) return -1;
  }
  return pixel(i, shape.input);
}

template <class Body>
void with_offset_type(const at::Tensor& offsets, const Body& body) {
  if (offsets.scalar_type() == at::kByte) {
    body(offsets.data_ptr<uint8_t>());
  } else {
    body(offsets.data_ptr<int32_t>());
  }
}

template <class T>
bool is_nan(T x) {
  return x != x;
}

// Backward passes: plane by plane, add(plane, o, place, grad[o], sums) hands the gradient of output pixel o on to
// the input pixels of its window. Overlapping windows add up in double and are rounded once, at the end.
template <class T, class Add>
void scatter(const at::Tensor& grad, const at::Tensor& grad_input, const PoolShape& shape, const Add& add) {
  const T* dy = grad.const_data_ptr<T>();
  const Images<T> dx{grad_input.data_ptr<T>(), shape.channels, shape.input, shape.channels_last};
  for_each_plane(shape, [&](int64_t plane, int64_t n, int64_t c) {
    std::vector<double> sums(dx.pixels());
    for_each_output(shape, n, c, [&](const Extent& o, int64_t place) {
      add(plane, o, place, static_cast<double>(dy[place]), sums.data());
    });
    T* to = dx.data + n * dx.image_stride() + c * dx.channel_stride();
    for (int64_t i = 0; i < dx.pixels(); ++i) to[i * dx.pixel_stride()] = static_cast<T>(sums[i]);
  });
}

}  // namespace

// y[o] = max over the taps k of o's window that fall inside the input of x[begin(o) + k D]. The first of equal maxima
// is chosen, in row-major order, and the last NaN before everything.
void max_pool(const at::Tensor& input, const at::Tensor& output, const at::Tensor& offsets, const PoolShape& shape,
              const PlaneWindows& windows) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "max_pool", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    const Extent& size = shape.input;
    const auto lowest = std::numeric_limits<scalar_t>::has_infinity ? -std::numeric_limits<scalar_t>::infinity()
                                                                    : std::numeric_limits<scalar_t>::lowest();

    const auto run = [&](auto* chosen) {
      for_each_plane(shape, [&](int64_t plane, int64_t n, int64_t c) {
        const Windows& w = windows.of(plane);
        const scalar_t* from = x.data + n * x.image_stride() + c * x.channel_stride();
        for_each_output(shape, n, c, [&](const Extent& o, int64_t place) {
          scalar_t best = lowest;
          int64_t best_tap = -1;
          const int64_t columns = w.count[2][o[2]], first_column = position(w, 2, o[2], 0);
          for (int64_t kd = 0; kd < w.count[0][o[0]]; ++kd) {
            const int64_t id = position(w, 0, o[0], kd);
            if (!inside(id, size[0])) continue;
            for (int64_t kh = 0; kh < w.count[1][o[1]]; ++kh) {
              const int64_t ih = position(w, 1, o[1], kh);
              if (!inside(ih, size[1])) continue;
              const scalar_t* row = from + pixel({id, ih, 0}, size) * x.pixel_stride();
              const int64_t row_tap = (kd * w.taps[1] + kh) * w.taps[2];
              for (int64_t kw = 0; kw < columns; ++kw) {
                const int64_t iw = first_column + kw * w.dilation[2];
                if (!inside(iw, size[2])) continue;
                const scalar_t value = row[iw * x.pixel_stride()];
                if (best_tap < 0 || value > best || is_nan(value)) {
                  best = value;
                  best_tap = row_tap + kw;
                }
              }
            }
          }
          y[place] = best;
          // A window of padding alone, which dilation makes possible, has no maximum: tap 0, itself outside.
          if (chosen != nullptr) chosen[place] = std::max<int64_t>(best_tap, 0);
        });
      });
    };
    if (offsets.defined()) {
      with_offset_type(offsets, run);
    } else {
      run(static_cast<uint8_t*>(nullptr));
    }
  });
}

// dx[i] = sum of dy[o] over the windows o whose maximum is x[i].
void max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, const at::Tensor& grad_input,
                       const PoolShape& shape, const PlaneWindows& windows) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "max_pool_backward", [&] {
    with_offset_type(offsets, [&](const auto* chosen) {
      scatter<scalar_t>(grad, grad_input, shape,
                        [&](int64_t plane, const Extent& o, int64_t place, double dy, double* dx) {
                          const int64_t i = chosen_pixel(o, chosen[place], shape, windows.of(plane));
                          if (i >= 0) dx[i] += dy;
                        });
    });
  });
}

// y[o] = x[i], i the pixel that o's offset names: max_pool_backward transposed.
void max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, const at::Tensor& output,
                     const PoolShape& shape, const PlaneWindows& windows) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "max_pool_gather", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    with_offset_type(offsets, [&](const auto* chosen) {
      for_each_plane(shape, [&](int64_t plane, int64_t n, int64_t c) {
        const scalar_t* from = x.data + n * x.image_stride() + c * x.channel_stride();
        for_each_output(shape, n, c, [&](const Extent& o, int64_t place) {
          const int64_t i = chosen_pixel(o, chosen[place], shape, windows.of(plane));
          y[place] = i < 0 ? scalar_t(0) : from[i * x.pixel_stride()];
        });
      });
    });
  });
}

// index[o] = i, counted within the plane.
void max_pool_indices(const at::Tensor& offsets, const at::Tensor& indices, const PoolShape& shape,
                      const PlaneWindows& windows) {
  int64_t* index = indices.data_ptr<int64_t>();
  with_offset_type(offsets, [&](const auto* chosen) {
    for_each_plane(shape, [&](int64_t plane, int64_t n, int64_t c) {
      for_each_output(shape, n, c, [&](const Extent& o, int64_t place) {
        index[place] = chosen_pixel(o, chosen[place], shape, windows.of(plane));
      });
    });
  });
}

namespace {

// Calls body(i) for every input pixel i, counted within its plane, of output pixel o's window; gives back the
// number the window's sum is divided by.
template <class Body>
int64_t for_each_in_window(const Extent& o, const PoolShape& shape, const Spans& spans, const Body& body) {
  const Span d = spans[0][o[0]], h = spans[1][o[1]], w = spans[2][o[2]];
  for (int64_t id = d.begin; id < d.end; ++id) {
    for (int64_t ih = h.begin; ih < h.end; ++ih) {
      for (int64_t iw = w.begin; iw < w.end; ++iw) body(pixel({id, ih, iw}, shape.input));
    }
  }
  return d.divisor * h.divisor * w.divisor;
}

// Narrow types are summed in double: their sums grow long, and this is the oracle.
template <class T>
using SumOf = std::conditional_t<std::is_integral_v<T>, T, double>;

// Integers are divided towards zero, and those divisions that have no result do not end the process.
double divide(double sum, int64_t divisor) {
  return sum / static_cast<double>(divisor);
}
int64_t divide(int64_t sum, int64_t divisor) {
  if (divisor == -1) return static_cast<int64_t>(-static_cast<uint64_t>(sum));
  return divisor == 0 ? 0 : sum / divisor;
}

}  // namespace

// y[o] = (sum of x[i] over i in window o) / divisor(o)
void average(const at::Tensor& input, const at::Tensor& output, const PoolShape& shape, const Spans& spans) {
  AT_DISPATCH_FLOATING_TYPES_AND3(at::kHalf, at::kBFloat16, at::kLong, input.scalar_type(), "avg_pool", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    for_each_plane(shape, [&](int64_t, int64_t n, int64_t c) {
      const scalar_t* from = x.data + n * x.image_stride() + c * x.channel_stride();
      for_each_output(shape, n, c, [&](const Extent& o, int64_t place) {
        SumOf<scalar_t> sum = 0;
        const int64_t divisor = for_each_in_window(
            o, shape, spans, [&](int64_t i) { sum += static_cast<SumOf<scalar_t>>(from[i * x.pixel_stride()]); });
        y[place] = static_cast<scalar_t>(divide(sum, divisor));
      });
    });
  });
}

// dx[i] = sum of dy[o] / divisor(o) over the windows o that hold i
void average_backward(const at::Tensor& grad, const at::Tensor& grad_input, const PoolShape& shape,
                      const Spans& spans) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "avg_pool_backward", [&] {
    scatter<scalar_t>(grad, grad_input, shape, [&](int64_t, const Extent& o, int64_t, double dy, double* dx) {
      const double share = dy / for_each_in_window(o, shape, spans, [](int64_t) {});
      for_each_in_window(o, shape, spans, [&](int64_t i) { dx[i] += share; });
    });
  });
}

}  // namespace scratchnn::naive
