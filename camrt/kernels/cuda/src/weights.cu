// Channel and pixel weights of the CAM rules. Arrays are those of KernelBackend.channel_weights and pixel_weights.
#include "camrt/math/half.hpp"
#include "camrt/math/weights.hpp"
#include "reduce.cuh"

namespace camrt {

constexpr int kThreads = 256;

// One channel, read by a warp (small layers) or a block. Sums are float64, so that the rounded total does not depend on
// their order where a denominator nearly vanishes.
template <typename Number, int kGroup>
struct Channel {
    const Number* activations;
    const Number* gradients;
    int size;

    template <typename Term>
    __device__ double sum(const Term& term) const {
        double total = 0.0;
        for (int i = thread_number() % kGroup; i < size; i += kGroup) {
            total += term(i);
        }
        if constexpr (kGroup == kWarp) {
            return reduce_warp(total, Add{});
        } else {
            return reduce_block<kGroup>(total, Add{});
        }
    }

    __device__ double activation(int i) const { return to_float(activations[i]); }
    __device__ double gradient(int i) const { return to_float(gradients[i]); }

    __device__ float weight(Rule rule) const {
        if (rule == Rule::gradcam) {
            return static_cast<float>(sum([this](int i) { return gradient(i); }) / size);
        }
        const double total = sum([this](int i) { return activation(i); });
        if (rule == Rule::xgradcam) {
            return xgradcam_weight(sum([this](int i) { return gradient(i) * activation(i); }), total);
        }
        const float rounded = static_cast<float>(total);
        return static_cast<float>(sum(
            [this, rounded](int i) { return static_cast<double>(plus_plus_term(to_float(gradients[i]), rounded)); }));
    }
};

// Blocks: (channels by kThreads / kGroup, classes).
template <typename Number, int kGroup>
__device__ void weigh_channels(const Number* activations, const Number* gradients, float* weights, int images,
                               int channels, int size, int rule) {
    const int channel = static_cast<int>(blockIdx.x) * (kThreads / kGroup) + thread_number() / kGroup;
    if (channel >= channels) {  // the same for all threads of a warp, and of a block where it is one group
        return;
    }
    const long long class_index = blockIdx.y;
    const long long image = images == 1 ? 0 : class_index;
    const Channel<Number, kGroup> read{activations + (image * channels + channel) * size,
                                       gradients + (class_index * channels + channel) * size, size};
    const float weight = read.weight(static_cast<Rule>(rule));
    if (thread_number() % kGroup == 0) {
        weights[class_index * channels + channel] = weight;
    }
}

template <Rule rule, typename Number>
__device__ void weigh_pixels(const Number* activations, const Number* gradients, float* weights, int images,
                             long long volume) {
    const long long class_index = blockIdx.y;
    const Number* const activation = activations + (images == 1 ? 0 : class_index * volume);
    const long long step = static_cast<long long>(gridDim.x) * kThreads;
    for (long long i = static_cast<long long>(blockIdx.x) * kThreads + thread_number(); i < volume; i += step) {
        const long long at = class_index * volume + i;
        weights[at] = pixel_weight<rule>(to_float(activation[i]), to_float(gradients[at]));
    }
}

// Blocks: (parts of the volume, classes).
template <typename Number>
__device__ void weigh_pixels(const Number* activations, const Number* gradients, float* weights, int images,
                             long long volume, int rule) {
    switch (static_cast<Rule>(rule)) {
        case Rule::hirescam:
            return weigh_pixels<Rule::hirescam>(activations, gradients, weights, images, volume);
        case Rule::gradcam_elementwise:
            return weigh_pixels<Rule::gradcam_elementwise>(activations, gradients, weights, images, volume);
        default:
            return weigh_pixels<Rule::layercam>(activations, gradients, weights, images, volume);
    }
}

}  // namespace camrt

using camrt::Half;

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    channel_weights_small_f32(const float* activations, const float* gradients, float* weights, int images,
                              int channels, int size, int rule) {
    camrt::weigh_channels<float, camrt::kWarp>(activations, gradients, weights, images, channels, size, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    channel_weights_small_f16(const Half* activations, const Half* gradients, float* weights, int images, int channels,
                              int size, int rule) {
    camrt::weigh_channels<Half, camrt::kWarp>(activations, gradients, weights, images, channels, size, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    channel_weights_large_f32(const float* activations, const float* gradients, float* weights, int images,
                              int channels, int size, int rule) {
    camrt::weigh_channels<float, camrt::kThreads>(activations, gradients, weights, images, channels, size, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    channel_weights_large_f16(const Half* activations, const Half* gradients, float* weights, int images, int channels,
                              int size, int rule) {
    camrt::weigh_channels<Half, camrt::kThreads>(activations, gradients, weights, images, channels, size, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    pixel_weights_f32(const float* activations, const float* gradients, float* weights, int images, long long volume,
                      int rule) {
    camrt::weigh_pixels(activations, gradients, weights, images, volume, rule);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads)
    pixel_weights_f16(const Half* activations, const Half* gradients, float* weights, int images, long long volume,
                      int rule) {
    camrt::weigh_pixels(activations, gradients, weights, images, volume, rule);
}
