// What the offsets of a max pooling name: from an offset to the input pixel it chose, for every output.
//
// Plain loops on all threads: memory is what they wait for. Offset: uint8_t or int32_t, as in kernels.h. Whatever the
// offsets are, only the input's own pixels are touched.
#pragma once

#include <cstdint>

#include "pool/kernels.h"

namespace scratchnn {

// grad_input[i] = sum of grad[o] over the outputs o that chose i. T: float or double.
template <class T, class Offset>
void scatter_gradients(const T* grad, const Offset* offsets, T* grad_input, const PoolShape& shape,
                       const PlaneWindows& windows);

// output[o] = input[the pixel o chose]; 0 where it chose none.
template <class T, class Offset>
void gather_chosen(const T* input, const Offset* offsets, T* output, const PoolShape& shape,
                   const PlaneWindows& windows);

// torch's indices: the chosen pixel's place within the plane, flattened; -1 where there is none.
template <class Offset>
void chosen_indices(const Offset* offsets, int64_t* indices, const PoolShape& shape, const PlaneWindows& windows);

}  // namespace scratchnn
