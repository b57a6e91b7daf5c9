// The loops that take the time, one table of them per instruction set.
#pragma once

#include <cstddef>

#include "camrt/types.hpp"

namespace camrt {

struct Range {
    float lowest;
    float highest;
    bool finite;
};

// Linear interpolation along one axis: output i is between source elements low[i] and high[i], at fraction[i].
struct Taps {
    const int* low;
    const int* high;
    const float* fraction;
    std::size_t count;  // a multiple of kLanes
    bool compact;       // every group of kLanes / 2 and of kLanes outputs reads at most as many neighbouring sources
};

// first + (second - first) * fraction, element by element.
struct BlendedRow {
    const float* first;
    const float* second;
    float fraction;
};

// (blended - lowest) * scale, element by element.
struct LayerRow {
    BlendedRow blended;
    float lowest;
    float scale;
};

// A layer whose rows, `stride` apart, have the output's width already; `taps` make the output's rows from them.
struct LayerRows {
    const float* rows;
    std::size_t stride;  // a multiple of kLanes; the floats after the output's width repeat valid ones
    Taps taps;
    float lowest;
    float scale;
};

struct HotLoops {
    // weights[c] of `channels` channels of `size` elements each; `rule` is one of the three channel rules.
    void (*channel_weights)(Rule rule, const float* activations, const float* gradients, std::size_t channels,
                            std::size_t size, float* weights);
    // weights[i] of `count` elements; `rule` is one of the three pixel rules.
    void (*pixel_weights)(Rule rule, const float* activations, const float* gradients, std::size_t count,
                          float* weights);
    // sum[i] += sum over c of weights[c] * activations[c][i].
    void (*add_channels)(const float* activations, const float* weights, std::size_t channels, std::size_t size,
                         float* sum);
    // sum[i] += sum over c of weight(activations[c][i], gradients[c][i]) * activations[c][i].
    void (*add_pixels)(Rule rule, const float* activations, const float* gradients, std::size_t channels,
                       std::size_t size, float* sum);
    // sum[i] += values[i].
    void (*add)(const float* values, std::size_t count, float* sum);
    Range (*range)(const float* values, std::size_t count);
    // output[i] = (max(values[i], 0) - lowest) / denominator, also in place.
    void (*normalize)(const float* values, std::size_t count, float lowest, float denominator, float* output);
    // values[i] = (values[i] - lowest) * scale.
    void (*rescale)(float* values, std::size_t count, float lowest, float scale);
    // taps.count outputs; kLanes floats after the last element of `row` must be readable.
    void (*resample_row)(const float* row, const Taps& taps, float* output);
    void (*blend_row)(const BlendedRow& row, std::size_t count, float* output);
    // The range of the blended rows 0 to height - 1 (before lowest and scale are applied).
    Range (*blended_range)(const LayerRows& layer, std::size_t height);
    // output[row][i], i < width, row in [first, last): fusion over the layers' rows. `work` has room for one row of
    // every layer. Returns the range of the output.
    Range (*fuse_rows)(Fusion fusion, const LayerRows* layers, std::size_t count, std::size_t first, std::size_t last,
                       std::size_t width, LayerRow* work, float* output);
};

namespace simd {
namespace baseline {
extern const HotLoops hot_loops;
}
#ifdef CAMRT_X86
namespace avx2 {
extern const HotLoops hot_loops;
}
namespace avx512 {
extern const HotLoops hot_loops;
}
#endif
}  // namespace simd

}  // namespace camrt
