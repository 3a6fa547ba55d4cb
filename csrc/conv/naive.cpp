// Convolution, its input gradient and its weight gradient as nested loops.
//
//   y[n, k, o]     = b[k] + sum over c, t of  w[k, c, t] x[n, g C + c, i]      with  i = o S - P + t D
//   dx[n, g C + c, i] = sum over k, t of  w[k, c, t] dy[n, k, o]
//   dw[k, c, t]    = sum over n, o of  x[n, g C + c, i] dy[n, k, o]
//
// All three are the same loops: every (n, k, o, c, t) whose input pixel i lies inside the image links one element
// of x, one of w and one of y, and each pass sums the product of two of them into the third. Sums are in double.
#include "conv/naive.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>

namespace scratchnn::naive {
namespace {

// Offsets of one tensor of rank 2 + spatial rank, seen as (outer, inner, depth, height, width).
struct Strides {
  int64_t outer, inner;
  Extent spatial;

  explicit Strides(const at::Tensor& tensor)
      : outer(tensor.stride(0)), inner(tensor.stride(1)), spatial(spatial_extent(tensor.strides().slice(2), 0)) {}

  int64_t at(int64_t i, int64_t j, const Extent& pixel) const {
    return i * outer + j * inner + pixel[0] * spatial[0] + pixel[1] * spatial[1] + pixel[2] * spatial[2];
  }
};

template <class Body>
void for_each(const Extent& size, const Body& body) {
  for (int64_t d = 0; d < size[0]; ++d) {
    for (int64_t h = 0; h < size[1]; ++h) {
      for (int64_t w = 0; w < size[2]; ++w) body(Extent{d, h, w});
    }
  }
}

// Calls link(n, k, o, c, t, i) for all of them; c counts within k's group.
template <class Link>
void for_each_link(const ConvGeometry& g, const Link& link) {
  for (int64_t n = 0; n < g.batch; ++n) {
    for (int64_t k = 0; k < g.out_channels; ++k) {
      for_each(g.output, [&](const Extent& o) {
        for (int64_t c = 0; c < g.group_in(); ++c) {
          for_each(g.kernel, [&](const Extent& t) {
            Extent i;
            for (int d = 0; d < kSpatialRank; ++d) {
              i[d] = o[d] * g.stride[d] - g.padding[d] + t[d] * g.dilation[d];
              if (i[d] < 0 || i[d] >= g.input[d]) return;
            }
            link(n, k, o, c, t, i);
          });
        }
      });
    }
  }
}

}  // namespace

void conv(const ConvGeometry& g, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
          const at::Tensor& output) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "conv", [&] {
    const Strides xs(input), ws(weight), ys(output);
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const at::Tensor sums = at::zeros(output.sizes(), output.options().dtype(at::kDouble));
    const Strides ss(sums);
    double* y = sums.data_ptr<double>();
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, const Extent& t, const Extent& i) {
      const int64_t channel = k / g.group_out() * g.group_in() + c;
      y[ss.at(n, k, o)] += static_cast<double>(w[ws.at(k, c, t)]) * static_cast<double>(x[xs.at(n, channel, i)]);
    });
    for (int64_t n = 0; n < g.batch; ++n) {
      for (int64_t k = 0; k < g.out_channels; ++k) {
        const double b = bias.defined() ? static_cast<double>(bias.const_data_ptr<scalar_t>()[k]) : 0.0;
        for_each(g.output, [&](const Extent& o) {
          output.data_ptr<scalar_t>()[ys.at(n, k, o)] = static_cast<scalar_t>(y[ss.at(n, k, o)] + b);
        });
      }
    }
  });
}

void conv_input_grad(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& weight,
                     const at::Tensor& grad_input) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "conv_input_grad", [&] {
    const Strides ws(weight), ys(grad);
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const at::Tensor sums = at::zeros(grad_input.sizes(), grad_input.options().dtype(at::kDouble));
    const Strides ss(sums);
    double* dx = sums.data_ptr<double>();
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, const Extent& t, const Extent& i) {
      const int64_t channel = k / g.group_out() * g.group_in() + c;
      dx[ss.at(n, channel, i)] += static_cast<double>(w[ws.at(k, c, t)]) * static_cast<double>(dy[ys.at(n, k, o)]);
    });
    grad_input.copy_(sums);
  });
}

void conv_weight_grad(const ConvGeometry& g, const at::Tensor& grad, const at::Tensor& input,
                      const at::Tensor& grad_weight) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "conv_weight_grad", [&] {
    const Strides xs(input), ys(grad);
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const at::Tensor sums = at::zeros(grad_weight.sizes(), grad_weight.options().dtype(at::kDouble));
    const Strides ss(sums);
    double* dw = sums.data_ptr<double>();
    for_each_link(g, [&](int64_t n, int64_t k, const Extent& o, int64_t c, const Extent& t, const Extent& i) {
      const int64_t channel = k / g.group_out() * g.group_in() + c;
      dw[ss.at(k, c, t)] += static_cast<double>(x[xs.at(n, channel, i)]) * static_cast<double>(dy[ys.at(n, k, o)]);
    });
    grad_weight.copy_(sums);
  });
}

}  // namespace scratchnn::naive
