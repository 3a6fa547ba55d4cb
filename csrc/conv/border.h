// The gradient that a border which continues the image gives back to the image.
#pragma once

#include "conv/geometry.h"

namespace scratchnn {

// Adds to dx, which counts the pixels inside of the image, what its copies in the border contribute.
template <class T>
void add_border_grad(const ConvGeometry& geometry, const Images<const T>& grad, const Filters<const T>& weight,
                     const Images<T>& grad_input);

}  // namespace scratchnn
