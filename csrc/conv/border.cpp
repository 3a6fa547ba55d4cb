// The border around the image is up to six boxes, before and after it in each dimension:
//
//     +-------------------+
//     |     before, h     |      in h: as wide as image and border together,
//     +---+-----------+---+      in w: only as high as the image
//     | w |   image   | w |
//     +---+-----------+---+
//     |     after, h      |
//     +-------------------+
//
// The gradient of a box is that of a convolution whose whole input is the box, padded (or cropped) to lie where it
// lies. Each box's gradient is computed, then added to the pixels that the box shows.
#include "conv/border.h"

#include <algorithm>
#include <vector>

#include "common/runtime.h"
#include "conv/choice.h"
#include "conv/kernels.h"

namespace scratchnn {
namespace {

struct Box {
  Extent first, size;
};

std::vector<Box> border_boxes(const ConvGeometry& g) {
  Extent before, after;  // the image, as far as any tap reads
  for (int d = 0; d < kSpatialRank; ++d) {
    const int64_t last = (g.output[d] - 1) * g.stride[d] - g.padding[d] + (g.kernel[d] - 1) * g.dilation[d];
    before[d] = std::max<int64_t>(0, g.padding[d]);
    after[d] = std::max<int64_t>(0, last + 1 - g.input[d]);
  }
  std::vector<Box> boxes;
  for (int d = 0; d < kSpatialRank; ++d) {
    Box box{{}, g.input};
    for (int e = d + 1; e < kSpatialRank; ++e) {
      box.first[e] = -before[e];
      box.size[e] += before[e] + after[e];
    }
    box.first[d] = -before[d];
    box.size[d] = before[d];
    if (before[d] > 0) boxes.push_back(box);
    box.first[d] = g.input[d];
    box.size[d] = after[d];
    if (after[d] > 0) boxes.push_back(box);
  }
  return boxes;
}

// to[pixel that position p of the box shows] += from[p], for every image and channel.
template <class T>
void add_shown(const ConvGeometry& g, const Box& box, const Images<const T>& from, const Images<T>& to) {
  std::vector<int64_t> shown;
  for (int64_t d = 0; d < box.size[0]; ++d) {
    for (int64_t h = 0; h < box.size[1]; ++h) {
      for (int64_t w = 0; w < box.size[2]; ++w) {
        const Extent at{d, h, w};
        int64_t pixel = 0;
        for (int e = 0; e < kSpatialRank; ++e) {
          pixel = pixel * g.input[e] + border_pixel(box.first[e] + at[e], g.input[e], g.border);
        }
        shown.push_back(pixel);
      }
    }
  }
  // Contiguous: a task is a plane; channels last: an image.
  const int64_t planes = to.channels_last ? 1 : to.channels, together = to.channels_last ? to.channels : 1;
  const int64_t pixels = from.pixels();
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, pixels * together);
  parallel_for(0, g.batch * planes, grain, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const T* source = from.data + plane * pixels * together;
      T* target = to.data + plane * to.pixels() * together;
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t c = 0; c < together; ++c) target[shown[p] * together + c] += source[p * together + c];
      }
    }
  });
}

}  // namespace

template <class T>
void add_border_grad(const ConvGeometry& g, const Images<const T>& grad, const Filters<const T>& weight,
                     const Images<T>& grad_input) {
  if (g.border == Border::kZeros || g.batch == 0) return;
  const bool depthwise = choose_algorithm(g, at::kFloat).algorithm == ConvAlgorithm::kDepthwise;
  const auto& kernel = depthwise ? depthwise_input_grad<T> : implicit_gemm_input_grad<T>;
  for (const Box& box : border_boxes(g)) {
    ConvGeometry of_box = g;
    of_box.input = box.size;
    of_box.border = Border::kZeros;
    for (int d = 0; d < kSpatialRank; ++d) of_box.padding[d] += box.first[d];
    std::vector<T> memory(static_cast<size_t>(g.batch * g.in_channels * volume(box.size)));
    const Images<T> images{memory.data(), g.in_channels, box.size, grad_input.channels_last};
    kernel(of_box, grad, weight, nullptr, images);
    add_shown<T>(g, box, {images.data, images.channels, images.size, images.channels_last}, grad_input);
  }
}

template void add_border_grad<float>(const ConvGeometry&, const Images<const float>&, const Filters<const float>&,
                                     const Images<float>&);
template void add_border_grad<double>(const ConvGeometry&, const Images<const double>&, const Filters<const double>&,
                                      const Images<double>&);

}  // namespace scratchnn
