// Bilinear resampling along rows and columns. Pixel centres are at half-integers, edges are repeated.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "camrt/hot_loops.hpp"
#include "camrt/thread_pool.hpp"

namespace camrt {

constexpr std::size_t kLongestAxis = std::size_t{1} << 24;

// Where the outputs of one axis come from: output begin + i lies between source elements low[i] and high[i].
struct Axis {
    std::vector<int> low;
    std::vector<int> high;
    std::vector<float> fraction;
    std::size_t begin = 0;  // outputs outside [begin, end) lie outside the source
    std::size_t end = 0;
    bool compact = false;

    [[nodiscard]] std::size_t count() const { return end - begin; }
    // Outputs that are written for a row: count() up to a whole number of lanes.
    [[nodiscard]] std::size_t padded() const { return low.size(); }
    [[nodiscard]] Taps taps() const { return {low.data(), high.data(), fraction.data(), low.size(), compact}; }
};

// The whole of `length` sources stretched over `count` outputs.
Axis resized_axis(std::size_t length, std::size_t count);

// `count` maps of `height` x `width`.
struct MapStack {
    std::span<const float> values;
    std::size_t count;
    std::size_t height;
    std::size_t width;

    [[nodiscard]] std::size_t size() const { return height * width; }
    [[nodiscard]] const float* map(std::size_t index) const { return values.data() + index * size(); }
};

// Throws std::invalid_argument if `maps` has an empty axis, one beyond 2^24, or not the size of its shape.
void check(const MapStack& maps);

// output: (maps.count, height, width).
void resize(const MapStack& maps, std::size_t height, std::size_t width, std::span<float> output, ThreadPool& pool);

// matrix: 2 x 3, from output to source coordinates; zero outside the source's area. output: (maps.count, height,
// width).
void warp_affine(const MapStack& maps, std::span<const float> matrix, std::size_t height, std::size_t width,
                 std::span<float> output, ThreadPool& pool);

}  // namespace camrt
