// What metrics do to images and maps. The formulas are those of the Python protocol (camrt/kernels/perturbation.py).
// All functions throw std::invalid_argument if a span has not the size of its shape.
#pragma once

#include <cstddef>
#include <span>

#include "camrt/resample.hpp"
#include "camrt/thread_pool.hpp"

namespace camrt {

// (N, C, H, W).
struct ImageStack {
    std::span<const float> values;
    std::size_t count;
    std::size_t channels;
    std::size_t height;
    std::size_t width;

    [[nodiscard]] std::size_t plane() const { return height * width; }
    [[nodiscard]] std::size_t size() const { return channels * plane(); }
    [[nodiscard]] const float* image(std::size_t index) const { return values.data() + index * size(); }
};

// masks: (N, 2 F, H, W), 1 = kept. `shares`: what each of the F masks keeps, 1 - removal fraction.
void keep_masks(const MapStack& maps, std::span<const double> shares, std::span<unsigned char> masks, ThreadPool& pool);

// keep: (N, B, H, W), not 0 = known; noise: (C, H, W) to add where pixels are missing, or empty; output: (N, B, C, H,
// W). Where nothing is known, the missing pixels are 0.
void impute(const ImageStack& images, std::span<const unsigned char> keep, std::span<const float> noise,
            std::span<float> output, ThreadPool& pool);

// output: (N, C, H, W).
void multiply(const ImageStack& images, const MapStack& maps, std::span<float> output, ThreadPool& pool);

// output: (N).
void pearson(const MapStack& first, const MapStack& second, std::span<double> output, ThreadPool& pool);
void mean_absolute(const MapStack& maps, std::span<double> output, ThreadPool& pool);

}  // namespace camrt
