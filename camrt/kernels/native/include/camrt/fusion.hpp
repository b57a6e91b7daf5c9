// From the maps of several layers to one saliency map.
#pragma once

#include <span>

#include "camrt/resample.hpp"
#include "camrt/thread_pool.hpp"
#include "camrt/types.hpp"

namespace camrt {

// layers[l]: (M, h_l, w_l); output: (M, height, width); degenerate: (M, L), 1 where a map was not finite or constant
// after ReLU. The formulas are those of the Python protocol (camrt/kernels/backend.py). Throws std::invalid_argument if
// a span has not the size of its shape, an axis is beyond 2^24, or the rows of the layers at the output's width take
// more than 1 GiB.
void fuse_layers(std::span<const MapStack> layers, std::size_t height, std::size_t width, Fusion fusion, Order order,
                 std::span<float> output, std::span<bool> degenerate, ThreadPool& pool);

}  // namespace camrt
