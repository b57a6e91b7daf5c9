// Weighted sums over channels, and the maps made from them. Arrays are those of KernelBackend.weighted_sum, layer_map
// and normalize.
#include "camrt/math/half.hpp"
#include "camrt/math/weights.hpp"
#include "reduce.cuh"

namespace camrt {

constexpr int kPixels = 32;  // of a block, one a lane
constexpr int kStrides = 8;  // channels that a block reads at a time
constexpr int kMapThreads = 512;

// sums[class_index][split][pixel] = sum of term(channel, pixel) over the split's channels.
// Blocks: (pixels by kPixels, splits, classes) of kPixels x kStrides threads.
template <typename Term>
__device__ void sum_channels(const Term& term, float* sums, int channels, int size) {
    __shared__ float parts[kStrides][kPixels];
    const int splits = static_cast<int>(gridDim.y);
    const int step = (channels + splits - 1) / splits;
    const int first = static_cast<int>(blockIdx.y) * step;
    const int last = first + step < channels ? first + step : channels;
    const int pixel = static_cast<int>(blockIdx.x * kPixels + threadIdx.x);
    float sum = 0.0F;
    if (pixel < size) {
#pragma unroll 4
        for (int channel = first + static_cast<int>(threadIdx.y); channel < last; channel += kStrides) {
            sum += term(channel, pixel);
        }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && pixel < size) {
        for (int row = 1; row < kStrides; ++row) {
            sum += parts[row][threadIdx.x];
        }
        const long long split = static_cast<long long>(blockIdx.z) * splits + blockIdx.y;
        sums[split * size + pixel] = sum;
    }
}

template <typename Number>
__device__ const Number* of_class(const Number* arrays, int count, int channels, int size) {
    const long long index = count == 1 ? 0 : blockIdx.z;
    return arrays + index * channels * size;
}

template <typename Number>
__device__ void sum_weighted_channels(const Number* activations, const float* weights, float* sums, int images,
                                      int channels, int size) {
    const Number* const activation = of_class(activations, images, channels, size);
    const float* const weight = weights + static_cast<long long>(blockIdx.z) * channels;
    sum_channels(
        [=](int channel, int pixel) {
            return weight[channel] * to_float(activation[static_cast<long long>(channel) * size + pixel]);
        },
        sums, channels, size);
}

template <Rule rule, typename Number>
__device__ void sum_weighted_pixels(const Number* activations, const Number* gradients, float* sums, int images,
                                    int channels, int size) {
    const Number* const activation = of_class(activations, images, channels, size);
    const Number* const gradient = gradients + static_cast<long long>(blockIdx.z) * channels * size;
    sum_channels(
        [=](int channel, int pixel) {
            const long long i = static_cast<long long>(channel) * size + pixel;
            const float value = to_float(activation[i]);
            return pixel_weight<rule>(value, to_float(gradient[i])) * value;
        },
        sums, channels, size);
}

template <typename Number>
__device__ void sum_weighted_pixels(const Number* activations, const Number* gradients, float* sums, int images,
                                    int channels, int size, int rule) {
    switch (static_cast<Rule>(rule)) {
        case Rule::hirescam:
            return sum_weighted_pixels<Rule::hirescam>(activations, gradients, sums, images, channels, size);
        case Rule::gradcam_elementwise:
            return sum_weighted_pixels<Rule::gradcam_elementwise>(activations, gradients, sums, images, channels, size);
        default:
            return sum_weighted_pixels<Rule::layercam>(activations, gradients, sums, images, channels, size);
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
    sum_channels_f32(const float* activations, const float* weights, float* sums, int images, int channels, int size) {
    camrt::sum_weighted_channels(activations, weights, sums, images, channels, size);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_channels_f16(const Half* activations, const float* weights, float* sums, int images, int channels, int size) {
    camrt::sum_weighted_channels(activations, weights, sums, images, channels, size);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_pixels_f32(const float* activations, const float* gradients, float* sums, int images, int channels, int size,
                   int rule) {
    camrt::sum_weighted_pixels(activations, gradients, sums, images, channels, size, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kPixels* camrt::kStrides)
    sum_pixels_f16(const Half* activations, const Half* gradients, float* sums, int images, int channels, int size,
                   int rule) {
    camrt::sum_weighted_pixels(activations, gradients, sums, images, channels, size, rule);
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

// maps[class_index] = min-max of relu(sum over splits), all NaN where a sum is not finite. Blocks: (classes).
extern "C" __global__ void __launch_bounds__(camrt::kMapThreads)
    finish_maps(const float* sums, float* maps, int splits, int size) {
    const float* const sum = sums + static_cast<long long>(blockIdx.x) * splits * size;
    float* const map = maps + static_cast<long long>(blockIdx.x) * size;
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
