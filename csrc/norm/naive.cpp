// Normalization straight from its formulas, for any index sets, in double.
//
// scratchnn.kernels("naive") runs these loops, and the tests hold the fast kernels against them. The input x is
// N x G x K x P, samples x groups x channels of a group x pixels. Each index set has a mean mu and a variance v, each
// channel of each group a weight w and a bias b:
//
//   r = 1 / sqrt(v + eps)     x_hat = (x - mu) r     y = w x_hat + b
//   db = sum of g             dw = sum of g x_hat    dx = r (w g - E[w g] - x_hat E[w g x_hat])
//
// g is the gradient that arrives at y and E the mean over an index set; db and dw are sums over samples and pixels.
#include "norm/naive.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace scratchnn::naive {
namespace {

// visit(position in memory, set, parameter) for every number.
template <class Visit>
void for_each_number(const IndexSets& sets, const Visit& visit) {
  const auto& [samples, groups, channels, pixels, channels_last, sharing, centred] = sets;
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t k = 0; k < channels; ++k) {
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t c = g * channels + k, C = groups * channels;
          const int64_t position = channels_last ? (n * pixels + p) * C + c : (n * C + c) * pixels + p;
          const int64_t set = sharing == Sharing::kBatch   ? g
                              : sharing == Sharing::kGroup ? n * groups + g
                                                           : n * pixels + p;
          visit(position, set, c);
        }
      }
    }
  }
}

}  // namespace

// mean = E[x], variance = E[(x - mean)^2].
void norm_statistics(const IndexSets& sets, const at::Tensor& input, double* mean, double* variance) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "norm", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const double share = 1 / static_cast<double>(sets.count());
    std::vector<double> means(sets.sets(), 0.0);
    if (sets.centred) {
      for_each_number(sets, [&](int64_t i, int64_t set, int64_t) { means[set] += share * static_cast<double>(x[i]); });
      std::copy(means.begin(), means.end(), mean);
    }
    std::fill_n(variance, sets.sets(), 0.0);
    for_each_number(sets, [&](int64_t i, int64_t set, int64_t) {
      const double deviation = static_cast<double>(x[i]) - means[set];
      variance[set] += share * deviation * deviation;
    });
  });
}

// y = w (x - mean) / sqrt(variance + eps) + b.
void norm_apply(const IndexSets& sets, const at::Tensor& input, const at::Tensor& output, const double* weight,
                const double* bias, double eps, const double* mean, const double* variance) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "norm", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* y = output.data_ptr<scalar_t>();
    for_each_number(sets, [&](int64_t i, int64_t set, int64_t parameter) {
      const double mu = sets.centred ? mean[set] : 0;
      const double x_hat = (static_cast<double>(x[i]) - mu) / std::sqrt(variance[set] + eps);
      y[i] = static_cast<scalar_t>(weight[parameter] * x_hat + bias[parameter]);
    });
  });
}

// y = min(max(n + r, low), high) over n, r the residual, where there is one.
void norm_end(const at::Tensor& output, const std::optional<at::Tensor>& residual, double low, double high) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, output.scalar_type(), "norm", [&] {
    scalar_t* y = output.data_ptr<scalar_t>();
    const scalar_t* r = residual ? residual->const_data_ptr<scalar_t>() : nullptr;
    for (int64_t i = 0; i < output.numel(); ++i) {
      const scalar_t sum = r == nullptr ? y[i] : static_cast<scalar_t>(y[i] + r[i]);
      y[i] = sum < low ? static_cast<scalar_t>(low) : sum > high ? static_cast<scalar_t>(high) : sum;
    }
  });
}

// The gradient of n and of r: g where the limits let n + r pass, else 0.
void norm_end_backward(const at::Tensor& grad, const at::Tensor& sum, double low, double high,
                       const at::Tensor& passed) {
  const double none = std::numeric_limits<double>::infinity();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "norm_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* s = sum.const_data_ptr<scalar_t>();
    scalar_t* out = passed.data_ptr<scalar_t>();
    for (int64_t i = 0; i < grad.numel(); ++i) {
      const bool held = (low > -none && s[i] <= low) || (high < none && s[i] >= high);
      out[i] = held ? scalar_t(0) : g[i];
    }
  });
}

// db = sum of g, dw = sum of g x_hat, and dx = r (w g - E[w g] - x_hat E[w g x_hat]): a change of x also moves the
// mean and the variance it is measured by. Without the last two terms where these are constants.
void norm_backward(const IndexSets& sets, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_input,
                   const double* weight, const double* mean, const double* variance, double eps, bool training,
                   double* grad_weight, double* grad_bias) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "norm_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* dx = grad_input.data_ptr<scalar_t>();
    const double share = 1 / static_cast<double>(sets.count());
    const auto r = [&](int64_t set) { return 1 / std::sqrt(variance[set] + eps); };
    std::vector<double> mu(sets.sets(), 0.0);
    if (sets.centred) std::copy_n(mean, mu.size(), mu.begin());
    if (sets.centred && training) {  // the mean may have been rounded when it was saved
      const std::vector<double> rounded = mu;
      for_each_number(sets, [&](int64_t i, int64_t set, int64_t) {
        mu[set] += share * (static_cast<double>(x[i]) - rounded[set]);
      });
    }
    const auto x_hat = [&](int64_t i, int64_t set) { return (static_cast<double>(x[i]) - mu[set]) * r(set); };
    std::fill_n(grad_weight, sets.parameters(), 0.0);
    std::fill_n(grad_bias, sets.parameters(), 0.0);
    std::vector<double> mean_wg(sets.sets(), 0.0), mean_wg_x_hat(sets.sets(), 0.0);
    for_each_number(sets, [&](int64_t i, int64_t set, int64_t parameter) {
      const double slope = static_cast<double>(g[i]);
      grad_weight[parameter] += slope * x_hat(i, set);
      grad_bias[parameter] += slope;
      if (!training) return;
      if (sets.centred) mean_wg[set] += share * weight[parameter] * slope;
      mean_wg_x_hat[set] += share * weight[parameter] * slope * x_hat(i, set);
    });
    for_each_number(sets, [&](int64_t i, int64_t set, int64_t parameter) {
      const double slope = weight[parameter] * static_cast<double>(g[i]);
      dx[i] = static_cast<scalar_t>(r(set) * (slope - mean_wg[set] - x_hat(i, set) * mean_wg_x_hat[set]));
    });
  });
}

namespace {

// visit(position(channel)) for every pixel, position giving a channel's place in memory.
template <class Visit>
void for_each_pixel(const Window& window, const Visit& visit) {
  const int64_t channels = window.channels, pixels = window.pixels;
  for (int64_t n = 0; n < window.samples; ++n) {
    for (int64_t p = 0; p < pixels; ++p) {
      visit([=](int64_t c) {
        return window.channels_last ? (n * pixels + p) * channels + c : (n * channels + c) * pixels + p;
      });
    }
  }
}

// The sum of value(i) over the channels i in [first, last] that exist.
template <class Value>
double sum_of(const Window& window, int64_t first, int64_t last, const Value& value) {
  double sum = 0;
  for (int64_t i = std::max<int64_t>(first, 0); i <= std::min(last, window.channels - 1); ++i) sum += value(i);
  return sum;
}

}  // namespace

// y_c = x_c s_c^-beta, s_c = k + scale (the sum of x^2 over the window of channel c).
void local_response_norm(const Window& window, const at::Tensor& input, const at::Tensor& output) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "local_response_norm", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* y = output.data_ptr<scalar_t>();
    for_each_pixel(window, [&](const auto& position) {
      const auto number = [&](int64_t c) { return static_cast<double>(x[position(c)]); };
      for (int64_t c = 0; c < window.channels; ++c) {
        const double squares =
            sum_of(window, c - window.before, c + window.after, [&](int64_t i) { return number(i) * number(i); });
        y[position(c)] = static_cast<scalar_t>(number(c) * std::pow(window.k + window.scale * squares, -window.beta));
      }
    });
  });
}

// dx = g s^-beta - 2 scale beta x (the sum of g x s^(-beta - 1) over the channels whose window this one is in).
void local_response_norm_backward(const Window& window, const at::Tensor& grad, const at::Tensor& input,
                                  const at::Tensor& grad_input) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "local_response_norm_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* dx = grad_input.data_ptr<scalar_t>();
    std::vector<double> s(window.channels);
    for_each_pixel(window, [&](const auto& position) {
      const auto number = [&](int64_t c) { return static_cast<double>(x[position(c)]); };
      const auto slope = [&](int64_t c) { return static_cast<double>(g[position(c)]); };
      for (int64_t c = 0; c < window.channels; ++c) {
        const double squares =
            sum_of(window, c - window.before, c + window.after, [&](int64_t i) { return number(i) * number(i); });
        s[c] = window.k + window.scale * squares;
      }
      for (int64_t c = 0; c < window.channels; ++c) {
        const double others = sum_of(window, c - window.after, c + window.before, [&](int64_t i) {
          return slope(i) * number(i) * std::pow(s[i], -window.beta - 1);
        });
        const double change =
            slope(c) * std::pow(s[c], -window.beta) - 2 * window.scale * window.beta * number(c) * others;
        dx[position(c)] = static_cast<scalar_t>(change);
      }
    });
  });
}

}  // namespace scratchnn::naive
