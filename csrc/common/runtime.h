// What kernels and operators ask of the process they run in: threads, scratch memory, the choice of kernels.
//
// Free of torch headers, so that the kernel files, compiled once per instruction set, stay small and share no
// inline code with the rest of the library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scratchnn {

namespace detail {
using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t begin, int64_t end, int64_t grain, bool backwards, RangeFunction function, void* context);
void* scratch(size_t bytes, int slot);
}  // namespace detail

// body(first, last) over disjoint ranges that cover [begin, end), on torch's intra-op threads. A range holds at
// least `grain` items. Kernels make results independent of how the ranges fall.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  auto call = [](void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); };
  detail::parallel_for(begin, end, grain, /*backwards=*/false, call, const_cast<Body*>(&body));
}

// The same, but each thread begins with the last of its ranges: what it has just gone through forwards, caches have the
// end of. Within a range body walks as it likes.
template <class Body>
void parallel_for_backwards(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  auto call = [](void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); };
  detail::parallel_for(begin, end, grain, /*backwards=*/true, call, const_cast<Body*>(&body));
}

// How many threads parallel_for uses at most. For sharing out work, never for choosing how a number is computed.
int64_t thread_count();

// This thread's scratch memory: `count` elements, 64-byte aligned, contents undefined. It is kept between calls,
// so that it does not page-fault each time. There are two, since the calling thread also works on tasks: kCall
// lives until the operator returns, kTask until the body given to parallel_for returns. Each is valid until the
// next request for the same one; carve several arrays from one request.
enum class Scratch { kCall, kTask };

template <class T>
T* scratch(int64_t count, Scratch which = Scratch::kTask) {
  return static_cast<T*>(detail::scratch(static_cast<size_t>(count) * sizeof(T), static_cast<int>(which)));
}

// Whether this processor has a unit for products of bfloat16 matrices (AMX), which the operating system lets this
// process use: conv/cpu/matrix_unit.h. False where the instruction set is lowered (dispatch.h).
bool has_matrix_unit();

// True while this thread asked for the readable kernels (scratchnn.kernels("naive")).
bool naive_kernels_requested();
bool request_naive_kernels(bool naive);  // returns what was in force before

}  // namespace scratchnn
