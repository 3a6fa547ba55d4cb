// Normalization by statistics of a sample alone, on the CPU: layer norm, RMS norm, group norm, instance norm.
//
// The input is seen as `shape`, samples x groups x channels of a group x pixels; `sharing` says which of these
// numbers belong together: those of a "row" (layer norm: samples are rows, groups and pixels one), of a "group", or
// of a "pixel" (of one group).
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "norm/naive.h"
#include "norm/parameters.h"

namespace scratchnn {
namespace {

// The format to compute in: rows are over the last dimensions, whatever the layout that the output keeps.
at::MemoryFormat format_of(const at::Tensor& input, c10::string_view sharing) {
  return sharing == "row" ? at::MemoryFormat::Contiguous : memory_format(input);
}

// True for rows of an image in channels_last, which the output stays in.
bool is_rearranged(const at::Tensor& input, c10::string_view sharing) {
  return sharing == "row" && is_channels_last(memory_format(input)) && !input.is_contiguous();
}

IndexSets index_sets(const at::Tensor& input, at::IntArrayRef shape, c10::string_view sharing, bool centred) {
  check_floating(input, "normalize");
  TORCH_CHECK(sharing == "row" || sharing == "group" || sharing == "pixel",
              "normalize: numbers are shared by 'row', 'group' or 'pixel', but got '", sharing, "'");
  TORCH_CHECK(shape.size() == 4, "normalize: expected samples, groups, channels and pixels, but got ", shape);
  const IndexSets sets = {shape[0],
                          shape[1],
                          shape[2],
                          shape[3],
                          is_channels_last(format_of(input, sharing)),
                          sharing == "pixel" ? Sharing::kPixel : Sharing::kGroup,
                          centred};
  TORCH_CHECK(sets.size() == input.numel() && shape[0] >= 0 && shape[1] >= 0 && shape[2] >= 0 && shape[3] >= 0,
              "normalize: an input of shape ", input.sizes(), " cannot be seen as ", shape);
  TORCH_CHECK(sharing != "pixel" || sets.groups == 1, "normalize: pixels by themselves have one group, but got ",
              sets.groups);
  TORCH_CHECK(sharing != "row" || sets.pixels == 1, "normalize: rows have one pixel, but got ", sets.pixels);
  TORCH_CHECK(
      sharing == "row" || (input.dim() >= 2 && input.size(0) == sets.samples && input.size(1) == sets.parameters()),
      "normalize: an input of shape ", input.sizes(), " cannot be seen as ", shape);
  return sets;
}

void check_parameter(const at::Tensor& input, const IndexSets& sets, const at::Tensor& parameter, const char* name) {
  TORCH_CHECK(parameter.numel() == sets.parameters(), "normalize: ", name, " should contain ", sets.parameters(),
              " elements, but its shape is ", parameter.sizes());
  check_parameter_type(input, parameter, name, "normalize");
}

// The shapes that the fast kernels know.
enum class Shape { kRows, kPlanes, kColumns };

Shape shape_of(const IndexSets& sets) {
  const bool together = sets.pixels == 1 || sets.channels_last;  // the channels of a pixel, in memory
  if (sets.sharing == Sharing::kPixel) return together ? Shape::kRows : Shape::kPlanes;
  return sets.channels_last && sets.pixels > 1 ? Shape::kColumns : Shape::kRows;
}

// Where runs of one parameter are short, every number of a row counts as having a parameter of its own.
bool is_spread(const IndexSets& sets) {
  return shape_of(sets) == Shape::kRows && sets.sharing == Sharing::kGroup && sets.pixels > 1 &&
         sets.pixels < kShortestSlice;
}

Rows rows_of(const IndexSets& sets) {
  if (sets.sharing == Sharing::kPixel) return {sets.samples * sets.pixels, 1, sets.channels, 1};
  const int64_t rows = sets.samples * sets.groups;
  if (is_spread(sets)) return {rows, sets.groups, sets.channels * sets.pixels, 1};
  return {rows, sets.groups, sets.channels, sets.pixels};
}

Interleaved columns_of(const IndexSets& sets) {
  return {sets.samples, sets.pixels, sets.groups, sets.channels, /*weight_by_position=*/true};
}

// A parameter tensor as the kernels read it: contiguous, of type T, spread over the pixels where that is asked for.
template <class T>
struct Parameter {
  at::Tensor owner;
  std::vector<T> spread;
  const T* data = nullptr;

  Parameter(const OptionalTensor& parameter, const IndexSets& sets) {
    if (!parameter) return;
    owner = parameter->to(c10::CppTypeToScalarType<T>::value).contiguous();
    data = owner.const_data_ptr<T>();
    if (!is_spread(sets)) return;
    for (int64_t i = 0; i < sets.parameters(); ++i) spread.insert(spread.end(), sets.pixels, data[i]);
    data = spread.data();
  }
};

// The sums of what belongs to one parameter.
std::vector<double> gathered(const std::vector<double>& spread, const IndexSets& sets) {
  if (!is_spread(sets)) return spread;
  std::vector<double> sums(sets.parameters(), 0.0);
  for (size_t i = 0; i < spread.size(); ++i) sums[i / sets.pixels] += spread[i];
  return sums;
}

// Planes of few pixels are not worth walking side by side: their pixels are laid out as rows first.
bool is_small_planes(const IndexSets& sets) {
  return shape_of(sets) == Shape::kPlanes && sets.pixels < kFewestPixels;
}

at::Tensor as_rows(const at::Tensor& image, const IndexSets& sets) {
  return image.reshape({sets.samples, sets.channels, sets.pixels}).transpose(1, 2).contiguous();
}

at::Tensor as_planes(const at::Tensor& rows, at::IntArrayRef sizes) {
  return rows.transpose(1, 2).reshape(sizes).contiguous();
}

// The first number of each set of a dense tensor: near enough to the mean for sums to run around it.
at::Tensor first_numbers(const at::Tensor& x, at::IntArrayRef shape, c10::string_view sharing) {
  return x.reshape(shape).select(2, 0).select(sharing == "pixel" ? 1 : 2, 0);
}

// The output, and mean and biased variance of each set. Without centring there is no mean, and the variance is E[x^2].
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize(const at::Tensor& input, const OptionalTensor& weight,
                                                         const OptionalTensor& bias, at::IntArrayRef shape,
                                                         c10::string_view sharing, bool centred, double eps) {
  const IndexSets sets = index_sets(input, shape, sharing, centred);
  if (weight) check_parameter(input, sets, *weight, "weight");
  if (bias) check_parameter(input, sets, *bias, "bias");
  if (weight && bias) check_same_type(*weight, "weight", *bias, "bias", "normalize");
  if (is_rearranged(input, sharing)) {
    const auto [y, mean, variance] = normalize(input.contiguous(), weight, bias, shape, sharing, centred, eps);
    return {y.contiguous(memory_format(input)), mean, variance};
  }
  const at::Tensor x = input.contiguous(format_of(input, sharing));
  const int64_t inner = sets.sharing == Sharing::kPixel ? sets.pixels : sets.groups;
  const auto statistics = x.options().dtype(statistics_type(x));
  const at::Tensor mean = at::empty(centred ? at::DimVector{sets.samples, inner} : at::DimVector{0}, statistics);
  const at::Tensor variance = at::empty({sets.samples, inner}, statistics);
  if (x.numel() == 0) return {at::empty_like(x), mean.zero_(), variance.zero_()};
  if (is_small_planes(sets) && use_vector_kernels(x)) {
    const auto [y, m, v] =
        normalize(as_rows(x, sets), weight, bias, {sets.samples * sets.pixels, 1, sets.channels, 1}, "row", true, eps);
    return {as_planes(y, x.sizes()), m.view(mean.sizes()), v.view(variance.sizes())};
  }
  const at::Tensor y = at::empty_like(x);
  if (!use_vector_kernels(x) || shape_of(sets) == Shape::kColumns) {
    const std::vector<double> w = numbers(weight, sets.parameters(), 1), b = numbers(bias, sets.parameters(), 0);
    std::vector<double> m(sets.sets()), v(sets.sets());
    if (use_vector_kernels(x)) {
      with_memory_type(x, [&](auto number) {
        using S = typename decltype(number)::type;
        norm_train_columns<S>(columns_of(sets), read_pointer<S>(x), write_pointer<S>(y), w.data(), b.data(), eps,
                              m.data(), v.data(), Ending<S>());
      });
    } else {
      naive::norm_statistics(sets, x, m.data(), v.data());
      naive::norm_apply(sets, x, y, w.data(), b.data(), eps, m.data(), v.data());
    }
    if (centred) assign(mean, m);
    assign(variance, v);
    return {y, mean, variance};
  }
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    using T = Computed<S>;
    const Parameter<T> w(weight, sets), b(bias, sets);
    T* m = centred ? mean.data_ptr<T>() : nullptr;
    T* v = variance.data_ptr<T>();
    if (shape_of(sets) == Shape::kRows) {
      norm_rows<S>(rows_of(sets), read_pointer<S>(x), write_pointer<S>(y), w.data, b.data, eps, m, v);
    } else {
      norm_strips<S>({sets.samples, sets.channels, sets.pixels}, read_pointer<S>(x), write_pointer<S>(y), w.data,
                     b.data, eps, m, v);
    }
  });
  return {y, mean, variance};
}

// The gradients of input, weight and bias, the last two where `parameters` asks for them, of the weight's type, or
// else of the input's, float32 beside a narrower one. The mean is measured again, and need not be given.
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize_backward(const at::Tensor& grad, const at::Tensor& input,
                                                                  const OptionalTensor& weight,
                                                                  const OptionalTensor& mean,
                                                                  const at::Tensor& variance, at::IntArrayRef shape,
                                                                  c10::string_view sharing, bool centred, double eps,
                                                                  bool parameters) {
  const IndexSets sets = index_sets(input, shape, sharing, centred);
  TORCH_CHECK(grad.sizes() == input.sizes(), "normalize_backward: expected grad of shape ", input.sizes(), ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", input, "input", "normalize_backward");
  if (weight) check_parameter(input, sets, *weight, "weight");
  const at::ScalarType statistics = statistics_type(input);
  TORCH_CHECK((!mean || mean->scalar_type() == statistics) && variance.scalar_type() == statistics,
              "normalize_backward: expected mean and var of type ", statistics, ", but got ",
              (mean ? *mean : variance).scalar_type(), " and ", variance.scalar_type());
  TORCH_CHECK((!mean || mean->numel() == (centred ? variance.numel() : 0)) &&
                  (input.numel() == 0 || variance.numel() == sets.sets()),
              "normalize_backward: expected statistics of ", sets.sets(), " sets, but got ",
              mean ? mean->numel() : variance.numel(), " means and ", variance.numel(), " variances");
  const int64_t asked = parameters ? sets.parameters() : 0;
  const auto options = input.options().dtype(parameter_type(input, weight));
  if (is_rearranged(input, sharing)) {
    const auto [dx, dw, db] = normalize_backward(grad.contiguous(), input.contiguous(), weight, mean, variance, shape,
                                                 sharing, centred, eps, parameters);
    return {dx.contiguous(memory_format(input)), dw, db};
  }
  const at::MemoryFormat format = format_of(input, sharing);
  const at::Tensor x = input.contiguous(format), g = grad.contiguous(format);
  if (x.numel() == 0) return {at::empty_like(x), at::zeros({asked}, options), at::zeros({asked}, options)};
  if (is_small_planes(sets) && use_vector_kernels(x)) {
    const at::DimVector rows = {sets.samples * sets.pixels, 1, sets.channels, 1};
    const auto [dx, dw, db] = normalize_backward(as_rows(g, sets), as_rows(x, sets), weight, mean, variance, rows,
                                                 "row", true, eps, parameters);
    return {as_planes(dx, x.sizes()), dw, db};
  }
  const at::Tensor dx = at::empty_like(x);
  const at::Tensor centre = !centred ? at::empty({0}, x.options())
                            : mean   ? *mean
                                     : first_numbers(x, shape, sharing).to(statistics);
  std::vector<double> dw, db;
  if (!use_vector_kernels(x) || shape_of(sets) == Shape::kColumns) {
    dw.resize(sets.parameters());
    db.resize(sets.parameters());
    const std::vector<double> w = numbers(weight, sets.parameters(), 1), m = numbers(centre), v = numbers(variance);
    if (use_vector_kernels(x)) {
      with_memory_type(x, [&](auto number) {
        using S = typename decltype(number)::type;
        norm_backward_columns<S>(columns_of(sets), read_pointer<S>(g), read_pointer<S>(x), write_pointer<S>(dx),
                                 w.data(), m.data(), v.data(), eps, Origin::kRounded, dw.data(), db.data(), Ending<S>(),
                                 Gate<S>());
      });
    } else {
      naive::norm_backward(sets, g, x, dx, w.data(), m.data(), v.data(), eps, true, dw.data(), db.data());
    }
  } else {
    const int64_t spread = parameters ? (is_spread(sets) ? sets.pixels : 1) * sets.parameters() : 0;
    dw.resize(spread);
    db.resize(spread);
    double* dw_data = parameters ? dw.data() : nullptr;
    double* db_data = parameters ? db.data() : nullptr;
    with_memory_type(x, [&](auto number) {
      using S = typename decltype(number)::type;
      using T = Computed<S>;
      const Parameter<T> w(weight, sets);
      const at::Tensor own_centre = centre.contiguous(), own_variance = variance.contiguous();
      const T* m = centred ? own_centre.const_data_ptr<T>() : nullptr;
      const T* v = own_variance.const_data_ptr<T>();
      if (shape_of(sets) == Shape::kRows) {
        norm_rows_backward<S>(rows_of(sets), read_pointer<S>(g), read_pointer<S>(x), write_pointer<S>(dx), w.data, m, v,
                              eps, dw_data, db_data);
      } else {
        norm_strips_backward<S>({sets.samples, sets.channels, sets.pixels}, read_pointer<S>(g), read_pointer<S>(x),
                                write_pointer<S>(dx), w.data, m, v, eps, dw_data, db_data);
      }
    });
    dw = gathered(dw, sets);
    db = gathered(db, sets);
  }
  dw.resize(asked);
  db.resize(asked);
  const at::Tensor grad_weight = at::empty({asked}, options), grad_bias = at::empty({asked}, options);
  assign(grad_weight, dw);
  assign(grad_bias, db);
  return {dx, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("normalize", normalize);
  library.impl("normalize_backward", normalize_backward);
}

}  // namespace scratchnn
