// From the maps of several layers to one saliency map. Arrays are those of KernelBackend.fuse_layers.
#include "camrt/math/fusion.hpp"
#include "tile.cuh"

namespace camrt {

constexpr int kMostLayers = 32;
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

// The range of all tiles. To be called by all threads of the block.
__device__ inline Range merged(const Range* tiles, int count) {
    Range range = empty_range();
    for (int i = thread_number(); i < count; i += kTileThreads) {
        range = {Smallest{}(tiles[i].lowest, range.lowest), Largest{}(tiles[i].highest, range.highest)};
    }
    return reduce_range<kTileThreads>(range);
}

}  // namespace camrt

using camrt::LayerMaps;
using camrt::Range;

// Min-max of relu of each map into `normalized`, all zeros and degenerate[m][l] = 1 where a map is not finite or
// constant after ReLU. Blocks: (layers, maps).
extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    normalize_layers(LayerMaps layers, float* normalized, unsigned char* degenerate) {
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
        degenerate[static_cast<long long>(index) * gridDim.x + layer] = flat ? 1 : 0;
    }
}

// ranges[m][l][tile] of the resized maps. Blocks: (tiles, layers, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    range_of_tiles(LayerMaps layers, const float* normalized, Range* ranges, int height, int width) {
    __shared__ camrt::TileTaps taps;
    const int layer = static_cast<int>(blockIdx.y);
    const camrt::Tile tile(height, width);
    tile.set_taps(taps, layers.heights[layer], layers.widths[layer]);
    const float* const map = normalized + layers.start(layer, static_cast<int>(blockIdx.z));
    Range range = camrt::empty_range();
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            range = camrt::extended(range, tile.sample(taps, map, layers.widths[layer], pixel));
        }
    }
    range = camrt::reduce_range<camrt::kTileThreads>(range);
    if (camrt::thread_number() == 0) {
        const long long at = static_cast<long long>(blockIdx.z) * gridDim.y + layer;
        ranges[at * gridDim.x + blockIdx.x] = range;
    }
}

// The fused pass: resize, min-max with the ranges of range_of_tiles (if `twice`), fusion; and the range of each tile of
// the result in fused_ranges[m][tile]. Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    fuse_tiles(LayerMaps layers, int count, const float* normalized, const Range* ranges, int twice, int fusion,
               float* output, Range* fused_ranges, int height, int width) {
    __shared__ camrt::TileTaps taps;
    const camrt::Fusion chosen = static_cast<camrt::Fusion>(fusion);
    const camrt::Tile tile(height, width);
    const int index = static_cast<int>(blockIdx.y);
    camrt::Fused fused[camrt::kTilePixels] = {};
    for (int layer = 0; layer < count; ++layer) {
        Range range{0.0F, 1.0F};
        float scale = 1.0F;
        if (twice != 0) {
            const long long at = static_cast<long long>(index) * count + layer;
            range = camrt::merged(ranges + at * gridDim.x, static_cast<int>(gridDim.x));
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
            const float value = camrt::finish_fusion(chosen, fused[pixel], count);
            output[static_cast<long long>(index) * height * width + tile.index(pixel)] = value;
            range = camrt::extended(range, value);
        }
    }
    range = camrt::reduce_range<camrt::kTileThreads>(range);
    if (camrt::thread_number() == 0) {
        fused_ranges[static_cast<long long>(index) * gridDim.x + blockIdx.x] = range;
    }
}

// Min-max of each fused map where it lies. Blocks: (tiles, maps).
extern "C" __global__ void __launch_bounds__(camrt::kTileThreads)
    rescale_tiles(float* output, const Range* fused_ranges, int height, int width) {
    const camrt::Tile tile(height, width);
    const long long index = blockIdx.y;
    const Range range = camrt::merged(fused_ranges + index * gridDim.x, static_cast<int>(gridDim.x));
    const float scale = camrt::scale_of(range);
    for (int pixel = 0; pixel < camrt::kTilePixels; ++pixel) {
        if (tile.holds(pixel)) {
            float& value = output[index * height * width + tile.index(pixel)];
            value = (value - range.lowest) * scale;
        }
    }
}
