// Channel and pixel weights of the CAM rules. Arrays are those of KernelBackend.channel_weights and pixel_weights.
#include "camrt/math/half.hpp"
#include "camrt/math/weights.hpp"
#include "layers.cuh"
#include "reduce.cuh"

namespace camrt {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;       // of a multiprocessor at least, which bounds the registers
constexpr int kWarpLayer = 256;  // elements of a channel that a warp can hold

// The sum over the kGroup threads, a warp or a block.
template <int kGroup>
__device__ double reduce_group(double value) {
    if constexpr (kGroup == kWarp) {
        return reduce_warp(value, Add{});
    } else {
        return reduce_block<kGroup>(value, Add{});
    }
}

// A channel of at most kGroup * kHeld elements, which a group of kGroup threads holds in registers: every read is under
// way before the first is needed. Sums are float64, so that the rounded total does not depend on their order where a
// denominator nearly vanishes.
template <typename Number, int kGroup, int kHeld>
struct HeldChannel {
    float activations[kHeld];
    float gradients[kHeld];
    int size;

    __device__ HeldChannel(const Number* activation, const Number* gradient, int elements, Rule rule) : size(elements) {
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
            const int i = thread_number() % kGroup + k * kGroup;
            gradients[k] = i < size ? to_float(gradient[i]) : 0.0F;
            activations[k] = i < size && rule != Rule::gradcam ? to_float(activation[i]) : 0.0F;
        }
    }

    // `term` is 0 for an activation and a gradient of 0.
    template <typename Term>
    __device__ double sum(const Term& term) const {
        double total = 0.0;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
            total += term(activations[k], gradients[k]);
        }
        return reduce_group<kGroup>(total);
    }
};

// A channel of any size, read once a sum by a block.
template <typename Number, int kGroup>
struct LongChannel {
    const Number* activations;
    const Number* gradients;
    int size;

    template <typename Term>
    __device__ double sum(const Term& term) const {
        double total = 0.0;
#pragma unroll 4
        for (int i = thread_number(); i < size; i += kGroup) {
            total += term(to_float(activations[i]), to_float(gradients[i]));
        }
        return reduce_group<kGroup>(total);
    }
};

template <typename Channel>
__device__ float weight_of(const Channel& channel, Rule rule) {
    if (rule == Rule::gradcam) {
        return static_cast<float>(channel.sum([](float, float g) -> double { return g; }) / channel.size);
    }
    const double total = channel.sum([](float a, float) -> double { return a; });
    if (rule == Rule::xgradcam) {
        return xgradcam_weight(
            channel.sum([](float a, float g) -> double { return static_cast<double>(g) * static_cast<double>(a); }),
            total);
    }
    const float rounded = static_cast<float>(total);
    return static_cast<float>(channel.sum([rounded](float, float g) -> double { return plus_plus_term(g, rounded); }));
}

// weights of all layers. A layer's part of the output is (M, C). Blocks: (groups of channels of all layers, classes).
template <typename Number>
__device__ void weigh_channels(const Layers& layers, float* weights, Rule rule) {
    const int layer = layers.layer_of_block();
    const int size = layers.sizes[layer];
    const int channels = layers.channels[layer];
    const int group = size <= kWarpLayer ? kWarp : kThreads;
    const int channel = layers.block_of_layer(layer) * (kThreads / group) + thread_number() / group;
    if (channel >= channels) {  // the same for all threads of a group
        return;
    }
    const long long class_index = blockIdx.y;
    const long long at = static_cast<long long>(channel) * size;
    const Number* const a = layers.activations_of<Number>(layer, class_index) + at;
    const Number* const g = layers.gradients_of<Number>(layer, class_index) + at;
    float weight = 0.0F;
    if (size <= 2 * kWarp) {
        weight = weight_of(HeldChannel<Number, kWarp, 2>(a, g, size, rule), rule);
    } else if (size <= kWarpLayer) {
        weight = weight_of(HeldChannel<Number, kWarp, kWarpLayer / kWarp>(a, g, size, rule), rule);
    } else if (size <= 4 * kThreads) {
        weight = weight_of(HeldChannel<Number, kThreads, 4>(a, g, size, rule), rule);
    } else if (size <= 16 * kThreads) {
        weight = weight_of(HeldChannel<Number, kThreads, 16>(a, g, size, rule), rule);
    } else {
        weight = weight_of(LongChannel<Number, kThreads>{a, g, size}, rule);
    }
    if (thread_number() % group == 0) {
        weights[layers.outputs[layer] + class_index * channels + channel] = weight;
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

extern "C" __global__ void __launch_bounds__(camrt::kThreads, camrt::kBlocks)
    channel_weights_f32(camrt::Layers layers, float* weights, int rule) {
    camrt::weigh_channels<float>(layers, weights, static_cast<camrt::Rule>(rule));
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads, camrt::kBlocks)
    channel_weights_f16(camrt::Layers layers, float* weights, int rule) {
    camrt::weigh_channels<Half>(layers, weights, static_cast<camrt::Rule>(rule));
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
