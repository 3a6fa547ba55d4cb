// Convolution, its input gradient and its weight gradient as nested loops.
//
//   y[n, k, o]     = b[k] + sum over c, t of  w[k, c, t] x[n, g C + c, i]      with  i = o S - P + t D
//   dx[n, g C + c, i] = sum over k, t of  w[k, c, t] dy[n, k, o]
//   dw[k, c, t]    = sum over n, o of  x[n, g C + c, i] dy[n, k, o]
//
// where g is the group of k and C the number of channels in it; x is N x (groups C) x pixels i, w K x C x taps t, y and
// the gradient dy that arrives at it N x K x pixels o, and pixels and taps have one to three dimensions.
//
// scratchnn.kernels("naive") runs these loops, the tests hold the fast kernels against them, and they serve the types
// that the fast ones do not.
//
// All three are the same loops: every (n, k, o, c, t) whose input pixel i lies inside the image, or in a border that
// continues the image, links one element of x, one of w and one of y, and each pass sums the product of two of them
// into the third.
#include "conv/naive.h"

#include <ATen/Dispatch.h>
#include <c10/util/complex.h>

#include <type_traits>
#include <vector>

namespace scratchnn::naive {
namespace {

// Sums are in double; those of whole numbers wrap round, as the type itself does.
template <class T>
using Sum = std::conditional_t<c10::is_complex<T>::value, c10::complex<double>,
                               std::conditional_t<std::is_integral_v<T>, uint64_t, double>>;

template <class T>
Sum<T> widen(T value) {
  if constexpr (c10::is_complex<T>::value) {
    return {static_cast<double>(value.real()), static_cast<double>(value.imag())};
  } else {
    return static_cast<Sum<T>>(value);
  }
}

template <class T>
T narrow(Sum<T> sum) {
  if constexpr (c10::is_complex<T>::value) {
    using Part = decltype(T().real());
    return T(static_cast<Part>(sum.real()), static_cast<Part>(sum.imag()));
  } else {
    return static_cast<T>(sum);
  }
}

template <class Body>
void for_each(const Extent& size, const Body& body) {
  for (int64_t d = 0; d < size[0]; ++d) {
    for (int64_t h = 0; h < size[1]; ++h) {
      for (int64_t w = 0; w < size[2]; ++w) body(Extent{d, h, w});
    }
  }
}

// A tensor of rank 2 + spatial rank, seen as (outer, inner, depth, height, width).
template <class T>
class Elements {
 public:
  explicit Elements(const at::Tensor& tensor)
      : data_(tensor.const_data_ptr<T>()),
        outer_(tensor.stride(0)),
        inner_(tensor.stride(1)),
        spatial_(spatial_extent(tensor.strides().slice(2), 0)) {}

  int64_t offset(int64_t i, int64_t j, const Extent& pixel) const {
    return i * outer_ + j * inner_ + pixel[0] * spatial_[0] + pixel[1] * spatial_[1] + pixel[2] * spatial_[2];
  }
  Sum<T> at(int64_t i, int64_t j, const Extent& pixel) const { return widen(data_[offset(i, j, pixel)]); }

 private:
  const T* data_;
  int64_t outer_, inner_;
  Extent spatial_;
};

// The sums that become a tensor, one for each element.
template <class T>
class Sums {
 public:
  explicit Sums(const at::Tensor& result)
      : result_(result),
        size_(spatial_extent(result.sizes().slice(2), 1)),
        sums_(static_cast<size_t>(result.numel())) {}

  Sum<T>& at(int64_t i, int64_t j, const Extent& pixel) {
    return sums_[((i * result_.size(1) + j) * size_[0] + pixel[0]) * size_[1] * size_[2] + pixel[1] * size_[2] +
                 pixel[2]];
  }

  // result[i, j, pixel] = sum + bias[j]
  void write(const at::Tensor& bias) {
    const Elements<T> elements(result_);
    T* data = result_.mutable_data_ptr<T>();
    for (int64_t i = 0; i < result_.size(0); ++i) {
      for (int64_t j = 0; j < result_.size(1); ++j) {
        const Sum<T> start = bias.defined() ? widen(bias.const_data_ptr<T>()[j]) : Sum<T>(0);
        for_each(size_,
                 [&](const Extent& pixel) { data[elements.offset(i, j, pixel)] = narrow<T>(at(i, j, pixel) + start); });
      }
    }
  }

 private:
  at::Tensor result_;
  Extent size_;
  std::vector<Sum<T>> sums_;
};

// Calls link(n, k, o, c, channel, t, i) for all of them; c counts within k's group, channel over all groups.
template <class Link>
void for_each_link(const ConvGeometry& g, const Link& link) {
  for (int64_t n = 0; n < g.batch; ++n) {
    for (int64_t k = 0; k < g.out_channels; ++k) {
      for_each(g.output, [&](const Extent& o) {
        for (int64_t c = 0; c < g.group_in(); ++c) {
          for_each(g.kernel, [&](const Extent& t) {
            Extent i;
            for (int d = 0; d < kSpatialRank; ++d) {
              i[d] = border_pixel(o[d] * g.stride[d] - g.padding[d] + t[d] * g.dilation[d], g.input[d], g.border);
              if (i[d] < 0) return;
            }
            link(n, k, o, c, k / g.group_out() * g.group_in() + c, t, i);
          });
        }
      });
    }
  }
}

}  // namespace

#define SCRATCHNN_DISPATCH(tensor, name, ...)                                                                        \
  AT_DISPATCH_ALL_TYPES_AND_COMPLEX_AND3(at::kComplexHalf, at::kHalf, at::kBFloat16, (tensor).scalar_type(), (name), \
                                         __VA_ARGS__)

void conv(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
          const at::Tensor& output) {
  SCRATCHNN_DISPATCH(input, "conv", [&] {
    const Elements<scalar_t> x(input), w(weight);
    Sums<scalar_t> y(output);
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, int64_t channel, const Extent& t,
                         const Extent& i) { y.at(n, k, o) += w.at(k, c, t) * x.at(n, channel, i); });
    y.write(bias);
  });
}

void conv_input_grad(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& bias,
                     const at::Tensor& grad_input) {
  SCRATCHNN_DISPATCH(grad, "conv_transpose", [&] {
    const Elements<scalar_t> dy(grad), w(weight);
    Sums<scalar_t> dx(grad_input);
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, int64_t channel, const Extent& t,
                         const Extent& i) { dx.at(n, channel, i) += w.at(k, c, t) * dy.at(n, k, o); });
    dx.write(bias);
  });
}

void conv_weight_grad(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
                      const at::Tensor& grad_weight) {
  SCRATCHNN_DISPATCH(grad, "conv_weight_grad", [&] {
    const Elements<scalar_t> dy(grad), x(input);
    Sums<scalar_t> dw(grad_weight);
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, int64_t channel, const Extent& t,
                         const Extent& i) { dw.at(k, c, t) += x.at(n, channel, i) * dy.at(n, k, o); });
    dw.write({});
  });
}

#undef SCRATCHNN_DISPATCH

}  // namespace scratchnn::naive
