// Weighted sums over channels, and the maps made from them. Arrays are those of KernelBackend.weighted_sum, layer_map
// and normalize.
#include "camrt/math/half.hpp"
#include "camrt/math/weights.hpp"
#include "layers.cuh"
#include "reduce.cuh"

namespace camrt {

constexpr int kPixels = 32;  // of a block, one a lane
constexpr int kStrides = 8;  // channels that a block reads at a time
constexpr int kMapThreads = 512;

// A layer's part of the output: sums[class_index][split][pixel] = sum of term(channel, pixel) over the split's
// channels. Blocks: (pixels by kPixels, splits; of all layers, classes) of kPixels x kStrides threads.
template <typename Term>
__device__ void sum_channels(const Layers& layers, int layer, const Term& term, float* sums) {
    __shared__ float parts[kStrides][kPixels];
    const int size = layers.sizes[layer];
    const int channels = layers.channels[layer];
    const int splits = layers.splits[layer];
    const int blocks = (size + kPixels - 1) / kPixels;
    const int split = layers.block_of_layer(layer) / blocks;
    const int step = (channels + splits - 1) / splits;
    const int first = split * step;
    const int last = first + step < channels ? first + step : channels;
    const int pixel = layers.block_of_layer(layer) % blocks * kPixels + static_cast<int>(threadIdx.x);
    float sum = 0.0F;
    if (pixel < size) {
#pragma unroll 4
        for (int channel = first + static_cast<int>(threadIdx.y); channel < last; channel += kStrides) {
            sum += term(channel, static_cast<long long>(channel) * size + pixel);
        }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && pixel < size) {
        for (int row = 1; row < kStrides; ++row) {
            sum += parts[row][threadIdx.x];
        }
        const long long at = static_cast<long long>(blockIdx.y) * splits + split;
        sums[layers.outputs[layer] + at * size + pixel] = sum;
    }
}

template <typename Number>
__device__ void sum_weighted_channels(const Layers& layers, float* sums) {
    const int layer = layers.layer_of_block();
    const Number* const activation = layers.activations_of<Number>(layer, blockIdx.y);
    const float* const weight =
        static_cast<const float*>(layers.factors[layer]) + static_cast<long long>(blockIdx.y) * layers.channels[layer];
    sum_channels(
        layers, layer, [=](int channel, long long i) { return weight[channel] * to_float(activation[i]); }, sums);
}

template <Rule rule, typename Number>
__device__ void sum_weighted_pixels(const Layers& layers, float* sums) {
    const int layer = layers.layer_of_block();
    const Number* const activation = layers.activations_of<Number>(layer, blockIdx.y);
    const Number* const gradient = layers.gradients_of<Number>(layer, blockIdx.y);
    sum_channels(
        layers, layer,
        [=](int, long long i) {
            const float value = to_float(activation[i]);
            return pixel_weight<rule>(value, to_float(gradient[i])) * value;
        },
        sums);
}

template <typename Number>
__device__ void sum_weighted_pixels(const Layers& layers, float* sums, int rule) {
    switch (static_cast<Rule>(rule)) {
        case Rule::hirescam:
            return sum_weighted_pixels<Rule::hirescam, Number>(layers, sums);
        case Rule::gradcam_elementwise:
            return sum_weighted_pixels<Rule::gradcam_elementwise, Number>(layers, sums);
        default:
            return sum_weighted_pixels<Rule::layercam, Number>(layers, sums);
    }
}

__device__ inline float sum_of_splits(const float* sums, int splits, int size, int pixel) {
    float sum = sums[pixel];
#pragma unroll 1
    for (int split = 1; split < splits; ++split) {
        sum += sums[static_cast<long long>(split) * size + pixel];
    }
    return sum;
}

}  // namespace camrt

using camrt::Half;

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_channels_f32(camrt::Layers layers, float* sums) {
    camrt::sum_weighted_channels<float>(layers, sums);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_channels_f16(camrt::Layers layers, float* sums) {
    camrt::sum_weighted_channels<Half>(layers, sums);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_pixels_f32(camrt::Layers layers, float* sums, int rule) {
    camrt::sum_weighted_pixels<float>(layers, sums, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_pixels_f16(camrt::Layers layers, float* sums, int rule) {
    camrt::sum_weighted_pixels<Half>(layers, sums, rule);
}

// maps[class_index][pixel] = sum over splits. Blocks: (parts of a map, classes).
extern "C" __global__ void __launch_bounds__(camrt::kMapThreads)
    add_splits(const float* sums, float* maps, int splits, int size) {
    const long long map = blockIdx.y;
    const int pixel = static_cast<int>(blockIdx.x) * camrt::kMapThreads + static_cast<int>(threadIdx.x);
    if (pixel < size) {
        maps[map * size + pixel] = camrt::sum_of_splits(sums + map * splits * size, splits, size, pixel);
    }
}

// A layer's maps[class_index] = min-max of relu(sum over splits), all NaN where a sum is not finite.
// Blocks: (layers, classes).
extern "C" __global__ void __launch_bounds__(camrt::kMapThreads)
    finish_maps(camrt::Layers layers, const float* sums, float* maps) {
    const int layer = static_cast<int>(blockIdx.x);
    const int size = layers.sizes[layer];
    const int splits = layers.splits[layer];
    const long long class_index = blockIdx.y;
    const float* const sum = sums + layers.outputs[layer] + class_index * splits * size;
    float* const map = maps + layers.maps[layer] + class_index * size;
    camrt::Range range = camrt::empty_range();
    int unusual = 0;
    for (int i = static_cast<int>(threadIdx.x); i < size; i += camrt::kMapThreads) {
        const float value = camrt::sum_of_splits(sum, splits, size, i);
        const float positive = value > 0.0F ? value : 0.0F;
        unusual |= camrt::is_finite(value) ? 0 : 1;
        range = camrt::extended(range, positive);
        map[i] = positive;
    }
    range = camrt::reduce_range<camrt::kMapThreads>(range);
    unusual = camrt::reduce_block<camrt::kMapThreads>(unusual, camrt::Add{});
    const float denominator = range.highest - range.lowest + camrt::kNormalizeEpsilon;
    for (int i = static_cast<int>(threadIdx.x); i < size; i += camrt::kMapThreads) {
        map[i] = unusual != 0 ? __int_as_float(0x7fc00000) : (map[i] - range.lowest) / denominator;
    }
}
