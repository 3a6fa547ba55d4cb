// Normalization straight from its formulas, one set after the other, in double.
#include "norm/naive.h"

#include <ATen/Dispatch.h>

#include <cmath>

namespace scratchnn::naive {
namespace {

// visit(i) for the position in memory of every number of a set.
template <class Visit>
void for_each_in_set(const IndexSets& geometry, int64_t set, const Visit& visit) {
  for (int64_t outer = 0; outer < geometry.outer; ++outer) {
    for (int64_t inner = 0; inner < geometry.inner; ++inner) {
      visit((outer * geometry.sets + set) * geometry.inner + inner);
    }
  }
}

}  // namespace

// mean = E[x], variance = E[(x - mean)^2].
void norm_train(const IndexSets& geometry, const at::Tensor& input, const at::Tensor& output, const double* weight,
                const double* bias, double eps, double* mean, double* variance) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "batch_norm", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const double count = static_cast<double>(geometry.count());
    for (int64_t set = 0; set < geometry.sets; ++set) {
      double sum = 0;
      for_each_in_set(geometry, set, [&](int64_t i) { sum += static_cast<double>(x[i]); });
      mean[set] = sum / count;
      double squares = 0;
      for_each_in_set(geometry, set, [&](int64_t i) {
        const double deviation = static_cast<double>(x[i]) - mean[set];
        squares += deviation * deviation;
      });
      variance[set] = squares / count;
    }
  });
  norm_eval(geometry, input, output, weight, bias, eps, mean, variance);
}

// y = w (x - mean) / sqrt(variance + eps) + b.
void norm_eval(const IndexSets& geometry, const at::Tensor& input, const at::Tensor& output, const double* weight,
               const double* bias, double eps, const double* mean, const double* variance) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "batch_norm", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* y = output.data_ptr<scalar_t>();
    for (int64_t set = 0; set < geometry.sets; ++set) {
      const double r = 1 / std::sqrt(variance[set] + eps);
      for_each_in_set(geometry, set, [&](int64_t i) {
        const double x_hat = (static_cast<double>(x[i]) - mean[set]) * r;
        y[i] = static_cast<scalar_t>(weight[set] * x_hat + bias[set]);
      });
    }
  });
}

// db = sum of g, dw = sum of g x_hat, and dx = w r (g - db / n - x_hat dw / n): a change of x also moves the
// mean and the variance it is measured by. Without the last two terms where these are constants.
void norm_backward(const IndexSets& geometry, const at::Tensor& grad, const at::Tensor& input,
                   const at::Tensor& grad_input, const double* weight, const double* mean, const double* variance,
                   double eps, bool training, double* grad_weight, double* grad_bias) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "batch_norm_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* dx = grad_input.data_ptr<scalar_t>();
    const double count = static_cast<double>(geometry.count());
    for (int64_t set = 0; set < geometry.sets; ++set) {
      const double r = 1 / std::sqrt(variance[set] + eps);
      const auto x_hat = [&](int64_t i) { return (static_cast<double>(x[i]) - mean[set]) * r; };
      double db = 0, dw = 0;
      for_each_in_set(geometry, set, [&](int64_t i) {
        db += static_cast<double>(g[i]);
        dw += static_cast<double>(g[i]) * x_hat(i);
      });
      const double mean_g = training ? db / count : 0;
      const double mean_g_x_hat = training ? dw / count : 0;
      for_each_in_set(geometry, set, [&](int64_t i) {
        const double change = static_cast<double>(g[i]) - mean_g - x_hat(i) * mean_g_x_hat;
        dx[i] = static_cast<scalar_t>(weight[set] * r * change);
      });
      grad_weight[set] = dw;
      grad_bias[set] = db;
    }
  });
}

}  // namespace scratchnn::naive
