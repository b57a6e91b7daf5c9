// The layers that one launch works on, passed by value; the Python side has the same layout.
#pragma once

namespace camrt {

constexpr int kMostLayers = 32;

struct Layers {
    const void* activations[kMostLayers];  // (N, C, h w)
    const void* factors[kMostLayers];      // gradients (M, C, h w), or weights (M, C)
    long long outputs[kMostLayers];        // where its part of the output begins
    long long maps[kMostLayers];           // where its maps begin
    int channels[kMostLayers];
    int sizes[kMostLayers];  // h w
    int splits[kMostLayers];
    int first_blocks[kMostLayers];  // of gridDim.x
    int count;
    int images;

    __device__ int layer_of_block() const {
        int layer = 0;
        while (layer + 1 < count && static_cast<int>(blockIdx.x) >= first_blocks[layer + 1]) {
            ++layer;
        }
        return layer;
    }
    __device__ int block_of_layer(int layer) const { return static_cast<int>(blockIdx.x) - first_blocks[layer]; }

    // The activations (C, h w) that belong to a class.
    template <typename Number>
    __device__ const Number* activations_of(int layer, long long class_index) const {
        const long long volume = static_cast<long long>(channels[layer]) * sizes[layer];
        return static_cast<const Number*>(activations[layer]) + (images == 1 ? 0 : class_index * volume);
    }
    template <typename Number>
    __device__ const Number* gradients_of(int layer, long long class_index) const {
        const long long volume = static_cast<long long>(channels[layer]) * sizes[layer];
        return static_cast<const Number*>(factors[layer]) + class_index * volume;
    }
};

}  // namespace camrt
