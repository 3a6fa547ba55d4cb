// The operators on the CPU of the activations that are not elementwise: check, allocate, choose a kernel.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/OpMathType.h>
#include <ATen/core/DistributionsHelper.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <limits>
#include <mutex>
#include <tuple>

#include "activation/naive.h"
#include "activation/tensors.h"

namespace scratchnn {
namespace {

void check_floating(const at::Tensor& input, const char* operation) {
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point(), operation, ": not implemented for ", input.scalar_type(),
                              " tensors");
}

void check_dim(const at::Tensor& input, int64_t dim, const char* operation) {
  TORCH_CHECK_INDEX(dim >= 0 && dim < std::max<int64_t>(1, input.dim()), operation, ": expected a dimension of input, ",
                    "which has shape ", input.sizes(), ", but got ", dim);
}

void check_alike(const at::Tensor& grad, const at::Tensor& other, const char* name, const char* operation) {
  TORCH_CHECK(grad.sizes() == other.sizes(), operation, ": expected grad of shape ", other.sizes(), ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", other, name, operation);
}

// Softmax and its relatives.

constexpr const char* softmax_name(Softmax f) {
  return f == Softmax::softmax ? "softmax" : f == Softmax::softmin ? "softmin" : "log_softmax";
}

template <Softmax f>
at::Tensor softmax(const at::Tensor& input, int64_t dim) {
  check_floating(input, softmax_name(f));
  check_dim(input, dim, softmax_name(f));
  const at::Tensor x = input.contiguous(memory_format(input));
  const at::Tensor y = at::empty_like(x);
  const Rows rows = rows_along(x, dim);
  if (!use_vector_kernels(x)) {
    naive::softmax(f, rows, x, y);
    return y;
  }
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    softmax_kernel<S>(f, rows, read_pointer<S>(x), write_pointer<S>(y));
  });
  return y;
}

template <Softmax f>
at::Tensor softmax_backward(const at::Tensor& grad, const at::Tensor& output, int64_t dim) {
  check_floating(grad, softmax_name(f));
  check_dim(output, dim, softmax_name(f));
  check_alike(grad, output, "output", softmax_name(f));
  const at::Tensor y = dense(output), dy = like(y, grad);
  const at::Tensor dx = at::empty_like(y);
  const Rows rows = rows_along(y, dim);
  if (!use_vector_kernels(y)) {
    naive::softmax_backward(f, rows, dy, y, dx);
    return dx;
  }
  with_memory_type(y, [&](auto number) {
    using S = typename decltype(number)::type;
    softmax_backward_kernel<S>(f, rows, read_pointer<S>(dy), read_pointer<S>(y), write_pointer<S>(dx));
  });
  return dx;
}

// The gated linear unit.

Rows rows_of_halves(const at::Tensor& x, int64_t dim, const char* operation) {
  check_floating(x, operation);
  TORCH_CHECK(x.dim() > 0, operation, ": expected input to have a dimension to halve, but got a scalar");
  check_dim(x, dim, operation);
  TORCH_CHECK(x.size(dim) % 2 == 0, operation, ": halving size must be even, but dimension ", dim,
              " of input of shape ", x.sizes(), " has size ", x.size(dim));
  Rows rows = rows_along(x, dim);
  rows.size /= 2;
  return rows;
}

// A new tensor with half of the dimension, in the order of memory of x.
at::Tensor empty_half(const at::Tensor& x, int64_t dim) {
  at::DimVector sizes(x.sizes()), strides(x.strides());
  sizes[dim] /= 2;
  for (int64_t& stride : strides) {
    if (stride > x.stride(dim)) stride /= 2;
  }
  return at::empty_strided(sizes, strides, x.options());
}

at::Tensor glu(const at::Tensor& input, int64_t dim) {
  const at::Tensor x = dense(input);
  const Rows rows = rows_of_halves(x, dim, "glu");
  const at::Tensor y = empty_half(x, dim);
  if (!use_vector_kernels(x)) {
    naive::glu(rows, x, y);
    return y;
  }
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    glu_kernel<S>(rows, read_pointer<S>(x), write_pointer<S>(y));
  });
  return y;
}

at::Tensor glu_backward(const at::Tensor& grad, const at::Tensor& input, int64_t dim) {
  const at::Tensor x = dense(input);
  const Rows rows = rows_of_halves(x, dim, "glu_backward");
  at::Tensor dy = empty_half(x, dim);
  check_alike(grad, dy, "input", "glu_backward");
  dy = grad.strides() == dy.strides() ? grad : dy.copy_(grad);
  const at::Tensor dx = at::empty_like(x);
  if (!use_vector_kernels(x)) {
    naive::glu_backward(rows, dy, x, dx);
    return dx;
  }
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    glu_backward_kernel<S>(rows, read_pointer<S>(dy), read_pointer<S>(x), write_pointer<S>(dx));
  });
  return dx;
}

// PReLU.

// Rows along the channels in memory. One slope for all is one channel that holds everything.
Rows rows_of_channels(const at::Tensor& x, const at::Tensor& weight, const char* operation) {
  check_floating(x, operation);
  check_same_type(x, "input", weight, "weight", operation);
  TORCH_CHECK(weight.dim() <= 1, operation, ": expected weight to have 0 or 1 dimensions, but got shape ",
              weight.sizes());
  const int64_t slopes = weight.numel();
  if (slopes == 1) return {1, 1, x.numel()};
  const int64_t channels = x.dim() >= 2 ? x.size(1) : 1;
  TORCH_CHECK(x.dim() > 0, operation, ": expected a single weight for a scalar input, but got ", slopes);
  TORCH_CHECK(slopes == channels, operation, ": expected 1 weight or one for each of ", channels,
              " channels of input of shape ", x.sizes(), ", but got ", slopes);
  return rows_along(x, 1);
}

at::Tensor prelu(const at::Tensor& input, const at::Tensor& weight) {
  const at::Tensor x = dense(input), w = weight.contiguous();
  const Rows rows = rows_of_channels(x, w, "prelu");
  const at::Tensor y = at::empty_like(x);
  if (!use_vector_kernels(x)) {
    naive::prelu(rows, x, w, y);
    return y;
  }
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    prelu_kernel<S>(rows, read_pointer<S>(x), read_pointer<S>(w), write_pointer<S>(y));
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward(const at::Tensor& grad, const at::Tensor& input,
                                                  const at::Tensor& weight) {
  check_alike(grad, input, "input", "prelu_backward");
  const at::Tensor x = dense(input), w = weight.contiguous();
  const Rows rows = rows_of_channels(x, w, "prelu_backward");
  const at::Tensor dy = like(x, grad);
  const at::Tensor dx = at::empty_like(x), dw = at::empty(w.sizes(), w.options().dtype(at::kDouble));
  if (!use_vector_kernels(x)) {
    naive::prelu_backward(rows, dy, x, w, dx, dw);
  } else {
    with_memory_type(x, [&](auto number) {
      using S = typename decltype(number)::type;
      prelu_backward_kernel<S>(rows, read_pointer<S>(dy), read_pointer<S>(x), read_pointer<S>(w), write_pointer<S>(dx),
                               dw.data_ptr<double>());
    });
  }
  return {dx, dw.to(w.scalar_type())};
}

// Randomized leaky ReLU. One number is drawn for every x <= 0, in the order of the dimensions and on one thread, with
// the generator and the distribution of torch's own: the same seed gives the same slopes.

std::tuple<at::Tensor, at::Tensor> rrelu_train(const at::Tensor& input, double lower, double upper) {
  check_floating(input, "rrelu");
  const at::Tensor x = input.contiguous();
  const at::Tensor y = at::empty_like(x), slopes = at::empty_like(x);
  auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rrelu", [&] {
    using wide = at::opmath_type<scalar_t>;
    at::uniform_real_distribution<double> uniform(static_cast<wide>(lower), static_cast<wide>(upper));
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t *to = y.data_ptr<scalar_t>(), *slope = slopes.data_ptr<scalar_t>();
    for (int64_t i = 0; i < x.numel(); ++i) {
      if (from[i] <= scalar_t(0)) {
        const wide drawn = static_cast<wide>(uniform(generator));
        to[i] = static_cast<scalar_t>(static_cast<wide>(from[i]) * drawn);
        slope[i] = static_cast<scalar_t>(drawn);
      } else {
        to[i] = from[i];
        slope[i] = scalar_t(1);
      }
    }
  });
  const at::MemoryFormat format = memory_format(input);
  return {y.contiguous(format), slopes.contiguous(format)};
}

// Maxout: the largest of `pieces` neighbours along a dimension.

// Contiguous and channels last tensors alike as contiguous ones, with the dimension and what undoes the view.
struct InMemoryOrder {
  at::Tensor tensor;
  int64_t dim;
  bool channels_last;

  InMemoryOrder(const at::Tensor& like, const at::Tensor& given, int64_t at) : dim(at) {
    channels_last = is_channels_last(memory_format(like));
    tensor = channels_last ? given.movedim(1, -1).contiguous() : given.contiguous();
    if (channels_last && dim >= 1) dim = dim == 1 ? given.dim() - 1 : dim - 1;
  }

  at::Tensor undo(const at::Tensor& other) const { return channels_last ? other.movedim(-1, 1) : other; }
};

at::DimVector resized(const at::Tensor& tensor, int64_t dim, int64_t size) {
  at::DimVector sizes(tensor.sizes());
  sizes[dim] = size;
  return sizes;
}

void check_pieces(const at::Tensor& x, int64_t pieces, int64_t dim, const char* operation) {
  TORCH_CHECK_NOT_IMPLEMENTED(!x.is_complex() && x.scalar_type() != at::kBool, operation, ": not implemented for ",
                              x.scalar_type(), " tensors");
  TORCH_CHECK(x.dim() > 0, operation, ": expected input to have a dimension of pieces, but got a scalar");
  check_dim(x, dim, operation);
  TORCH_CHECK(pieces >= 1 && pieces <= std::numeric_limits<int16_t>::max(), operation,
              ": expected between 1 and 32767 pieces, but got ", pieces);
  TORCH_CHECK(x.size(dim) % pieces == 0, operation, ": expected a multiple of ", pieces, " pieces, but dimension ", dim,
              " of input of shape ", x.sizes(), " has size ", x.size(dim));
}

// The rows of a contiguous output.
Rows rows_of_outputs(const at::Tensor& y, int64_t dim) {
  Rows rows{1, y.size(dim), 1};
  for (int64_t i = 0; i < y.dim(); ++i) {
    if (i != dim) (i < dim ? rows.outer : rows.inner) *= y.size(i);
  }
  return rows;
}

// body(input or its gradient's position of piece 0, output's position), for every output in memory's order. Pieces are
// r.inner apart.
template <class Body>
void for_each_output(const Rows& r, int64_t pieces, const Body& body) {
  parallel_for(0, r.outer * r.size, 1 + 16384 / std::max<int64_t>(1, pieces * r.inner), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      for (int64_t k = 0; k < r.inner; ++k) body(row * pieces * r.inner + k, row * r.inner + k);
    }
  });
}

// y_k = max over p of x_(k pieces + p), and which p: the first of equals, or the first that is NaN.
std::tuple<at::Tensor, at::Tensor> maxout(const at::Tensor& input, int64_t pieces, int64_t dim) {
  check_pieces(input, pieces, dim, "maxout");
  const InMemoryOrder x(input, input, dim);
  const at::Tensor y = at::empty(resized(x.tensor, x.dim, x.tensor.size(x.dim) / pieces), x.tensor.options());
  const at::Tensor winners = at::empty(y.sizes(), y.options().dtype(at::kShort));
  const Rows rows = rows_of_outputs(y, x.dim);
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, y.scalar_type(), "maxout", [&] {
    const scalar_t* from = x.tensor.const_data_ptr<scalar_t>();
    scalar_t* to = y.data_ptr<scalar_t>();
    int16_t* winner = winners.data_ptr<int16_t>();
    for_each_output(rows, pieces, [&](int64_t in, int64_t out) {
      scalar_t most = from[in];
      int64_t which = 0;
      for (int64_t p = 1; p < pieces && most == most; ++p) {
        const scalar_t value = from[in + p * rows.inner];
        if (!(value <= most)) {
          most = value;
          which = p;
        }
      }
      to[out] = most;
      winner[out] = static_cast<int16_t>(which);
    });
  });
  return {x.undo(y), x.undo(winners)};
}

void check_winners(const at::Tensor& tensor, const at::Tensor& winners, at::IntArrayRef shape, const char* operation) {
  TORCH_CHECK(winners.scalar_type() == at::kShort && winners.sizes() == shape, operation,
              ": expected winners of type Short and shape ", shape, ", but got ", winners.scalar_type(), " and ",
              winners.sizes());
  check_floating(tensor, operation);
}

// dx is dy where a piece won, else 0.
at::Tensor maxout_backward(const at::Tensor& grad, const at::Tensor& winners, int64_t pieces, int64_t dim) {
  check_winners(grad, winners, grad.sizes(), "maxout_backward");
  check_pieces(grad, 1, dim, "maxout_backward");
  const InMemoryOrder dy(winners, grad, dim), w(winners, winners, dim);
  const at::Tensor dx = at::empty(resized(dy.tensor, dy.dim, grad.size(dim) * pieces), grad.options()).zero_();
  const Rows rows = rows_of_outputs(dy.tensor, dy.dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dx.scalar_type(), "maxout_backward", [&] {
    const scalar_t* from = dy.tensor.const_data_ptr<scalar_t>();
    const int16_t* winner = w.tensor.const_data_ptr<int16_t>();
    scalar_t* to = dx.data_ptr<scalar_t>();
    for_each_output(rows, pieces, [&](int64_t in, int64_t out) {
      if (winner[out] >= 0 && winner[out] < pieces) to[in + winner[out] * rows.inner] = from[out];
    });
  });
  return dy.undo(dx);
}

// The numbers of the pieces that won: the adjoint of maxout_backward.
at::Tensor maxout_gather(const at::Tensor& input, const at::Tensor& winners, int64_t pieces, int64_t dim) {
  check_pieces(input, pieces, dim, "maxout_gather");
  check_winners(input, winners, resized(input, dim, input.size(dim) / pieces), "maxout_gather");
  const InMemoryOrder x(winners, input, dim), w(winners, winners, dim);
  const at::Tensor y = at::empty(w.tensor.sizes(), x.tensor.options());
  const Rows rows = rows_of_outputs(y, x.dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, y.scalar_type(), "maxout_gather", [&] {
    const scalar_t* from = x.tensor.const_data_ptr<scalar_t>();
    const int16_t* winner = w.tensor.const_data_ptr<int16_t>();
    scalar_t* to = y.data_ptr<scalar_t>();
    for_each_output(rows, pieces, [&](int64_t in, int64_t out) {
      const bool valid = winner[out] >= 0 && winner[out] < pieces;
      to[out] = valid ? from[in + winner[out] * rows.inner] : scalar_t(0);
    });
  });
  return x.undo(y);
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("softmax", softmax<Softmax::softmax>);
  library.impl("softmin", softmax<Softmax::softmin>);
  library.impl("log_softmax", softmax<Softmax::log_softmax>);
  library.impl("softmax_backward", softmax_backward<Softmax::softmax>);
  library.impl("softmin_backward", softmax_backward<Softmax::softmin>);
  library.impl("log_softmax_backward", softmax_backward<Softmax::log_softmax>);
  library.impl("glu", glu);
  library.impl("glu_backward", glu_backward);
  library.impl("prelu", prelu);
  library.impl("prelu_backward", prelu_backward);
  library.impl("rrelu_train", rrelu_train);
  library.impl("maxout", maxout);
  library.impl("maxout_backward", maxout_backward);
  library.impl("maxout_gather", maxout_gather);
}

}  // namespace scratchnn
