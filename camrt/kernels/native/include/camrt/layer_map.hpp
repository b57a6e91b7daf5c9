// From the activations and gradients of a layer to its map. The formulas are those of the Python protocol
// (camrt/kernels/backend.py). All functions throw std::invalid_argument if a span has not the size of its shape.
#pragma once

#include <span>

#include "camrt/thread_pool.hpp"
#include "camrt/types.hpp"

namespace camrt {

// activations (N, C, h, w) and gradients (M, C, h, w), N = `images` being 1 or M = `classes`.
struct LayerArrays {
    std::span<const float> activations;
    std::span<const float> gradients;
    std::size_t images;
    std::size_t classes;
    std::size_t channels;
    std::size_t size;  // h * w
};

// weights: (M, C).
void channel_weights(const LayerArrays& layer, Rule rule, std::span<float> weights, ThreadPool& pool);

// weights: (M, C, h, w).
void pixel_weights(const LayerArrays& layer, Rule rule, std::span<float> weights, ThreadPool& pool);

// `layer.gradients` holds the weights of every element; output: (M, h, w).
void weighted_sum_of_pixels(const LayerArrays& layer, std::span<float> output, ThreadPool& pool);

// weights: (M, C), `layer.gradients` is not read; output: (M, h, w).
void weighted_sum_of_channels(const LayerArrays& layer, std::span<const float> weights, std::span<float> output,
                              ThreadPool& pool);

// Weights, weighted sum, ReLU and min-max of several layers; outputs[l]: (M_l, h_l, w_l).
void layer_maps(std::span<const LayerArrays> layers, Rule rule, std::span<const std::span<float>> outputs,
                ThreadPool& pool);

// ReLU and min-max of each of `count` maps, in place allowed; a map that is not finite becomes NaN.
void normalize(std::span<const float> maps, std::size_t count, std::span<float> output, ThreadPool& pool);

}  // namespace camrt
