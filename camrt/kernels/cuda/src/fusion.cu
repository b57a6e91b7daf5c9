// From the maps of several layers to one saliency map. Arrays are those of KernelBackend.fuse_layers.
#include "camrt/math/fusion.hpp"
#include "layers.cuh"
#include "tile.cuh"

namespace camrt {

constexpr int kThreads = 256;

// The maps of every layer, (M, heights[l], widths[l]), and where their normalized copies begin in one buffer. Passed by
// value; the Python side has the same layout.
struct LayerMaps {
    const float* maps[kMostLayers];
    long long offsets[kMostLayers];
    int heights[kMostLayers];
    int widths[kMostLayers];

    __device__ int size(int layer) const { return heights[layer] * widths[layer]; }
    __device__ long long start(int layer, int map) const {
        return offsets[layer] + static_cast<long long>(map) * size(layer);
    }
};

__device__ inline float scale_of(Range range) { return 1.0F / (range.highest - range.lowest + kNormalizeEpsilon); }

// The range of numbers from 0 to infinity that many blocks extend, in any order: such numbers are in the order of their
// bits. All bits 0: of no numbers yet.
struct SharedRange {
    unsigned below_infinity;  // the bits of infinity, less those of the lowest
    unsigned highest;

    __device__ void extend(Range range) {
        atomicMax(&below_infinity, kInfinity - __float_as_uint(range.lowest));
        atomicMax(&highest, __float_as_uint(range.highest));
    }
    __device__ Range get() const { return {__uint_as_float(kInfinity - below_infinity), __uint_as_float(highest)}; }

    static constexpr unsigned kInfinity = 0x7f800000U;
};

// Not negative, and never -0.
__device__ inline float at_least_zero(float value) { return value > 0.0F ? value : 0.0F; }

}  // namespace camrt

using camrt::LayerMaps;
using camrt::Range;
using camrt::SharedRange;

// Min-max of relu of each map into `normalized`, all zeros and degenerate[m][l] = 1 where a map is not finite or
// constant after ReLU; and ranges[m][l] and fused_ranges[m] of no numbers yet. Blocks: (layers, maps).
extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    normalize_layers(LayerMaps layers, float* normalized, unsigned char* degenerate, SharedRange* ranges,
                     SharedRange* fused_ranges) {
    const int layer = static_cast<int>(blockIdx.x);
    const int index = static_cast<int>(blockIdx.y);
    const int size = layers.size(layer);
    const float* const map = layers.maps[layer] + static_cast<long long>(index) * size;
    float* const output = normalized + layers.start(layer, index);
    Range range = camrt::empty_range();
    int unusual = 0;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < size; i += camrt::kThreads) {
        const float value = map[i];
        unusual |= camrt::is_finite(value) ? 0 : 1;
        range = camrt::extended(range, value > 0.0F ? value : 0.0F);
    }
    range = camrt::reduce_range<camrt::kThreads>(range);
    unusual = camrt::reduce_block<camrt::kThreads>(unusual, camrt::Add{});
    const bool flat = unusual != 0 || range.highest == range.lowest;
    const float denominator = range.highest - range.lowest + camrt::kNormalizeEpsilon;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < size; i += camrt::kThreads) {
        output[i] = flat ? 0.0F : ((map[i] > 0.0F ? map[i] : 0.0F) - range.lowest) / denominator;
    }
    if (threadIdx.x == 0) {
        const long long at = static_cast<long long>(index) * gridDim.x + layer;
        degenerate[at] = flat ? 1 : 0;
        ranges[at] = {0U, 0U};
        if (layer == 0) {
            fused_ranges[index] = {0U, 0U};
        }
    }
}

// ranges[m][l] of the resized maps. Blocks: (tiles, layers, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    range_of_tiles(LayerMaps layers, const float* normalized, SharedRange* ranges, int height, int width) {
    __shared__ camrt::TileTaps taps;
    const int layer = static_cast<int>(blockIdx.y);
    const camrt::Tile tile(height, width);
    tile.set_taps(taps, layers.heights[layer], layers.widths[layer]);
    const float* const map = normalized + layers.start(layer, static_cast<int>(blockIdx.z));
    Range range = camrt::empty_range();
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            range = camrt::extended(range, camrt::at_least_zero(tile.sample(taps, map, layers.widths[layer], pixel)));
        }
    }
    range = camrt::reduce_range<camrt::kTileThreads>(range);
    if (camrt::thread_number() == 0) {
        ranges[static_cast<long long>(blockIdx.z) * gridDim.y + layer].extend(range);
    }
}

// The fused pass: resize, min-max with the ranges of range_of_tiles (if `twice`), fusion; and fused_ranges[m] of the
// result. Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    fuse_tiles(LayerMaps layers, int count, const float* normalized, const SharedRange* ranges, int twice, int fusion,
               float* output, SharedRange* fused_ranges, int height, int width) {
    __shared__ camrt::TileTaps taps;
    const camrt::Fusion chosen = static_cast<camrt::Fusion>(fusion);
    const camrt::Tile tile(height, width);
    const int index = static_cast<int>(blockIdx.y);
    camrt::Fused fused[camrt::kTilePixels] = {};
    for (int layer = 0; layer < count; ++layer) {
        Range range{0.0F, 1.0F};
        float scale = 1.0F;
        if (twice != 0) {
            range = ranges[static_cast<long long>(index) * count + layer].get();
            scale = camrt::scale_of(range);
        }
        tile.set_taps(taps, layers.heights[layer], layers.widths[layer]);
        const float* const map = normalized + layers.start(layer, index);
        for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
            if (tile.holds(pixel)) {
                const float sampled = tile.sample(taps, map, layers.widths[layer], pixel);
                const float value = twice != 0 ? (sampled - range.lowest) * scale : sampled;
                fused[pixel] = layer == 0 ? camrt::begin_fusion(chosen, value)
                                          : camrt::continue_fusion(chosen, fused[pixel], value);
            }
        }
    }
    Range range = camrt::empty_range();
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            const float value = camrt::at_least_zero(camrt::finish_fusion(chosen, fused[pixel], count));
            output[static_cast<long long>(index) * height * width + tile.index(pixel)] = value;
            range = camrt::extended(range, value);
        }
    }
    range = camrt::reduce_range<camrt::kTileThreads>(range);
    if (camrt::thread_number() == 0) {
        fused_ranges[index].extend(range);
    }
}

// Min-max of each fused map where it lies. Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    rescale_tiles(float* output, const SharedRange* fused_ranges, int height, int width) {
    const camrt::Tile tile(height, width);
    const long long index = blockIdx.y;
    const Range range = fused_ranges[index].get();
    const float scale = camrt::scale_of(range);
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            float& value = output[index * height * width + tile.index(pixel)];
            value = (value - range.lowest) * scale;
        }
    }
}
