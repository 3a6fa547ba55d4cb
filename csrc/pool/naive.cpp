// The pooling layers straight from their formulas: nested loops over images, channels, pixels and windows.
#include "pool/naive.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

namespace scratchnn::naive {
namespace {

// Calls body(n, c, o, out): every output pixel o of every plane, and its place in the output's memory.
template <class Body>
void for_each_output(const PoolShape& shape, const Body& body) {
  const Images<const char> output{nullptr, shape.channels, shape.output, shape.channels_last};
  for (int64_t n = 0; n < shape.images; ++n) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      int64_t place = n * output.image_stride() + c * output.channel_stride();
      for (int64_t od = 0; od < shape.output[0]; ++od) {
        for (int64_t oh = 0; oh < shape.output[1]; ++oh) {
          for (int64_t ow = 0; ow < shape.output[2]; ++ow, place += output.pixel_stride()) {
            body(n, c, Extent{od, oh, ow}, place);
          }
        }
      }
    }
  }
}

// Pixel i of the input: its place within the plane, counted in pixels.
int64_t pixel(const Extent& i, const Extent& size) {
  return (i[0] * size[1] + i[1]) * size[2] + i[2];
}

// The input pixel under tap k of output pixel o's window: i = o S - P + k D.
Extent tap_position(const Extent& o, const Extent& k, const Window& window) {
  Extent i;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    i[dim] = o[dim] * window.stride[dim] - window.padding[dim] + k[dim] * window.dilation[dim];
  }
  return i;
}

bool inside(const Extent& i, const Extent& size) {
  return i[0] >= 0 && i[0] < size[0] && i[1] >= 0 && i[1] < size[1] && i[2] >= 0 && i[2] < size[2];
}

// The input pixel that an offset names, or -1 where that lies outside the input.
int64_t chosen_pixel(const Extent& o, int64_t offset, const PoolShape& shape, const Window& window) {
  const Extent& kernel = window.kernel;
  const Extent k{offset / (kernel[1] * kernel[2]), offset / kernel[2] % kernel[1], offset % kernel[2]};
  const Extent i = tap_position(o, k, window);
  return inside(i, shape.input) ? pixel(i, shape.input) : -1;
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

// Backward passes: plane by plane, add(o, place, grad[o], sums) hands the gradient of output pixel o on to
// the input pixels of its window. Overlapping windows add up in double and are rounded once, at the end.
template <class T, class Add>
void scatter(const at::Tensor& grad, const at::Tensor& grad_input, const PoolShape& shape, const Add& add) {
  const T* dy = grad.const_data_ptr<T>();
  const Images<T> dx{grad_input.data_ptr<T>(), shape.channels, shape.input, shape.channels_last};
  std::vector<double> sums(dx.pixels());
  const int64_t last = volume(shape.output) - 1;
  if (last < 0) {
    grad_input.zero_();
    return;
  }
  int64_t done = 0;
  for_each_output(shape, [&](int64_t n, int64_t c, const Extent& o, int64_t place) {
    add(o, place, static_cast<double>(dy[place]), sums.data());
    if (done++ % (last + 1) != last) return;
    T* plane = dx.data + n * dx.image_stride() + c * dx.channel_stride();
    for (int64_t i = 0; i < dx.pixels(); ++i) plane[i * dx.pixel_stride()] = static_cast<T>(sums[i]);
    std::fill(sums.begin(), sums.end(), 0.0);
  });
}

}  // namespace

// y[o] = max over the taps k that fall inside the input of x[o S - P + k D]. The first of equal maxima is
// chosen, in row-major order, and the last NaN before everything.
void max_pool(const at::Tensor& input, const at::Tensor& output, const at::Tensor& offsets, const PoolShape& shape,
              const Window& window) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "max_pool2d", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    const auto lowest = std::numeric_limits<scalar_t>::has_infinity ? -std::numeric_limits<scalar_t>::infinity()
                                                                    : std::numeric_limits<scalar_t>::lowest();

    const auto run = [&](auto* chosen) {
      for_each_output(shape, [&](int64_t n, int64_t c, const Extent& o, int64_t place) {
        const scalar_t* plane = x.data + n * x.image_stride() + c * x.channel_stride();
        scalar_t best = lowest;
        int64_t best_tap = -1;
        int64_t tap = 0;
        for (int64_t kd = 0; kd < window.kernel[0]; ++kd) {
          for (int64_t kh = 0; kh < window.kernel[1]; ++kh) {
            for (int64_t kw = 0; kw < window.kernel[2]; ++kw, ++tap) {
              const Extent i = tap_position(o, {kd, kh, kw}, window);
              if (!inside(i, shape.input)) continue;
              const scalar_t value = plane[pixel(i, shape.input) * x.pixel_stride()];
              if (best_tap < 0 || value > best || is_nan(value)) {
                best = value;
                best_tap = tap;
              }
            }
          }
        }
        y[place] = best;
        // A window of padding alone, which dilation makes possible, has no maximum: tap 0, itself outside.
        if (chosen != nullptr) chosen[place] = std::max<int64_t>(best_tap, 0);
      });
    };
    if (offsets.defined()) {
      with_offset_type(offsets, run);
    } else {
      run(static_cast<uint8_t*>(nullptr));
    }
  });
}

// dL/dx[i] = sum of dL/dy[o] over the windows o whose maximum is x[i].
void max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, const at::Tensor& grad_input,
                       const PoolShape& shape, const Window& window) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "max_pool2d_backward", [&] {
    with_offset_type(offsets, [&](const auto* chosen) {
      scatter<scalar_t>(grad, grad_input, shape, [&](const Extent& o, int64_t place, double dy, double* dx) {
        const int64_t i = chosen_pixel(o, chosen[place], shape, window);
        if (i >= 0) dx[i] += dy;
      });
    });
  });
}

void max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, const at::Tensor& output,
                     const PoolShape& shape, const Window& window) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "max_pool2d_gather", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    with_offset_type(offsets, [&](const auto* chosen) {
      for_each_output(shape, [&](int64_t n, int64_t c, const Extent& o, int64_t place) {
        const int64_t i = chosen_pixel(o, chosen[place], shape, window);
        y[place] = i < 0 ? scalar_t(0) : x.data[n * x.image_stride() + c * x.channel_stride() + i * x.pixel_stride()];
      });
    });
  });
}

void max_pool_indices(const at::Tensor& offsets, const at::Tensor& indices, const PoolShape& shape,
                      const Window& window) {
  int64_t* index = indices.data_ptr<int64_t>();
  with_offset_type(offsets, [&](const auto* chosen) {
    for_each_output(shape, [&](int64_t, int64_t, const Extent& o, int64_t place) {
      index[place] = chosen_pixel(o, chosen[place], shape, window);
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

}  // namespace

// y[o] = (sum of x[i] over i in window o) / divisor(o)
void average(const at::Tensor& input, const at::Tensor& output, const PoolShape& shape, const Spans& spans) {
  AT_DISPATCH_FLOATING_TYPES_AND3(at::kHalf, at::kBFloat16, at::kLong, input.scalar_type(), "avg_pool2d", [&] {
    const Images<const scalar_t> x{input.const_data_ptr<scalar_t>(), shape.channels, shape.input, shape.channels_last};
    scalar_t* y = output.data_ptr<scalar_t>();
    for_each_output(shape, [&](int64_t n, int64_t c, const Extent& o, int64_t place) {
      const scalar_t* plane = x.data + n * x.image_stride() + c * x.channel_stride();
      SumOf<scalar_t> sum = 0;
      const int64_t divisor = for_each_in_window(
          o, shape, spans, [&](int64_t i) { sum += static_cast<SumOf<scalar_t>>(plane[i * x.pixel_stride()]); });
      y[place] = static_cast<scalar_t>(sum / divisor);
    });
  });
}

// dL/dx[i] = sum of dL/dy[o] / divisor(o) over the windows o that hold i
void average_backward(const at::Tensor& grad, const at::Tensor& grad_input, const PoolShape& shape,
                      const Spans& spans) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "avg_pool2d_backward", [&] {
    scatter<scalar_t>(grad, grad_input, shape, [&](const Extent& o, int64_t, double dy, double* dx) {
      const double share = dy / for_each_in_window(o, shape, spans, [](int64_t) {});
      for_each_in_window(o, shape, spans, [&](int64_t i) { dx[i] += share; });
    });
  });
}

}  // namespace scratchnn::naive
