// What the operators (not the kernels) share: layouts, types, output sizes.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>
#include <type_traits>

#include "common/geometry.h"
#include "common/runtime.h"

namespace scratchnn {

struct BFloat16;  // common/half.h, which is for the kernels alone
struct Half;

// The layout an operator keeps, out as in: channels_last where the tensor is, else contiguous.
inline at::MemoryFormat memory_format(const at::Tensor& tensor) {
  return tensor.suggest_memory_format();
}

inline bool is_channels_last(at::MemoryFormat format) {
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// True where the fast kernels serve this type; the naive ones serve every floating type.
inline bool has_fast_kernels(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble;
}

inline bool use_fast_kernels(const at::Tensor& tensor) {
  return has_fast_kernels(tensor.scalar_type()) && !naive_kernels_requested();
}

// True where kernels that read and write half precision serve this type, beside float and double.
inline bool use_vector_kernels(const at::Tensor& tensor) {
  return at::isFloatingType(tensor.scalar_type()) && !naive_kernels_requested();
}

// True where a fast operator runs on float32 copies and rounds its result once: half precision, summed as torch does.
inline bool is_widened(const at::Tensor& tensor) {
  return (tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16) && !naive_kernels_requested();
}

// What serves a type, for people: "fast", "widened" (fast, on float32 copies) or "naive".
inline std::string kernels_for(at::ScalarType type) {
  if (naive_kernels_requested()) return "naive";
  if (has_fast_kernels(type)) return "fast";
  return type == at::kHalf || type == at::kBFloat16 ? "widened" : "naive";
}

inline std::optional<at::Tensor> widened(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(tensor->to(at::kFloat)) : std::nullopt;
}

// Calls body(T()) with the fast type of the tensor, float or double.
template <class Body>
void with_fast_type(const at::Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == at::kFloat) {
    body(float());
  } else {
    body(double());
  }
}

// Names a type without needing its definition.
template <class S>
struct MemoryType {
  using type = S;
};

// Calls body with the MemoryType of the tensor's numbers, as the kernels know it.
template <class Body>
void with_memory_type(const at::Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body(MemoryType<float>());
    case at::kDouble:
      return body(MemoryType<double>());
    case at::kBFloat16:
      return body(MemoryType<BFloat16>());
    case at::kHalf:
      return body(MemoryType<Half>());
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "not implemented for ", tensor.scalar_type(), " tensors");
  }
}

template <class S>
const S* read_pointer(const at::Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}
template <class S>
S* write_pointer(const at::Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

// A dense N x C x * tensor of up to three spatial dimensions as Images. N x C tensors have one pixel an image and
// count as channels last.
template <class T>
Images<T> images_of(const at::Tensor& tensor) {
  T* data;
  if constexpr (std::is_const_v<T>) {
    data = read_pointer<std::remove_const_t<T>>(tensor);
  } else {
    data = write_pointer<T>(tensor);
  }
  const bool channels_last = tensor.dim() == 2 || is_channels_last(memory_format(tensor));
  return {data, tensor.size(1), spatial_extent(tensor.sizes().slice(2), 1), channels_last};
}

inline void check_same_type(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name,
                            const char* operation) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), operation, ": expected ", a_name, " and ", b_name,
              " to have the same dtype, but got ", a.scalar_type(), " and ", b.scalar_type());
}

}  // namespace scratchnn
