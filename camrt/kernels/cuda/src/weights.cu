// Channel and pixel weights of the CAM rules. Arrays are those of KernelBackend.channel_weights and pixel_weights.
#include "camrt/math/half.hpp"
#include "camrt/math/weights.hpp"
#include "layers.cuh"
#include "reduce.cuh"

namespace camrt {

constexpr int kThreads = 256;
constexpr int kBlocks = 3;        // of a multiprocessor at least, which bounds the registers
constexpr int kWarpLayer = 1024;  // elements of a channel that is left to a warp
constexpr int kHeldByWarp = 8;    // elements that a thread holds
constexpr int kHeld = 16;

// The sum over the kGroup threads, a warp or a block.
template <int kGroup>
__device__ double reduce_group(double value) {
    if constexpr (kGroup == kWarp) {
        return reduce_warp(value, Add{});
    } else {
        return reduce_block<kGroup>(value, Add{});
    }
}

// A channel of at most kGroup * kCount elements, which a group of kGroup threads holds in registers: every read is
// under way before the first is needed. Sums are float64, so that the rounded total does not depend on their order
// where a denominator nearly vanishes.
template <typename Number, int kGroup, int kCount>
struct HeldChannel {
    float activations[kCount];
    float gradients[kCount];
    int size;

    __device__ HeldChannel(const Number* activation, const Number* gradient, int elements) : size(elements) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            const int i = thread_number() % kGroup + k * kGroup;
            gradients[k] = i < size ? to_float(gradient[i]) : 0.0F;
            activations[k] = i < size ? to_float(activation[i]) : 0.0F;
        }
    }

    // `term` is 0 for an activation and a gradient of 0.
    template <typename Term>
    __device__ double sum(const Term& term) const {
        double total = 0.0;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            total += term(activations[k], gradients[k]);
        }
        return reduce_group<kGroup>(total);
    }
};

// A channel of any size, read once a sum by a warp or a block.
template <typename Number, int kGroup>
struct ReadChannel {
    const Number* activations;
    const Number* gradients;
    int size;

    template <typename Term>
    __device__ double sum(const Term& term) const {
        double total = 0.0;
#pragma unroll 2
        for (int i = thread_number() % kGroup; i < size; i += kGroup) {
            total += term(to_float(activations[i]), to_float(gradients[i]));
        }
        return reduce_group<kGroup>(total);
    }
};

template <typename Channel>
__device__ float weight_of(const Channel& channel, Rule rule) {
    const double total = channel.sum([](float a, float) -> double { return a; });
    if (rule == Rule::xgradcam) {
        return xgradcam_weight(
            channel.sum([](float a, float g) -> double { return static_cast<double>(g) * static_cast<double>(a); }),
            total);
    }
    const float rounded = static_cast<float>(total);
    return static_cast<float>(channel.sum([rounded](float, float g) -> double { return plus_plus_term(g, rounded); }));
}

// The channel that a group of threads works on.
template <typename Number>
struct GroupOfChannel {
    const Number* activations;  // of the channel
    const Number* gradients;
    int size;
    bool by_warp;
    bool exists;    // the same for all threads of the group
    long long out;  // where its weight goes

    __device__ explicit GroupOfChannel(const Layers& layers) {
        const int layer = layers.layer_of_block();
        size = layers.sizes[layer];
        by_warp = size <= kWarpLayer;
        const int group = by_warp ? kWarp : kThreads;
        const int channel = layers.block_of_layer(layer) * (kThreads / group) + thread_number() / group;
        exists = channel < layers.channels[layer];
        const long long class_index = blockIdx.y;
        const long long at = static_cast<long long>(channel) * size;
        activations = layers.activations_of<Number>(layer, class_index) + at;
        gradients = layers.gradients_of<Number>(layer, class_index) + at;
        out = layers.outputs[layer] + class_index * layers.channels[layer] + channel;
    }

    __device__ void write(float* weights, float weight) const {
        if (thread_number() % (by_warp ? kWarp : kThreads) == 0) {
            weights[out] = weight;
        }
    }
};

// weights of all layers by gradcam. A layer's part of the output is (M, C). Blocks: (groups of channels of all layers,
// classes).
template <typename Number>
__device__ void mean_gradients(const Layers& layers, float* weights) {
    const GroupOfChannel<Number> group(layers);
    if (!group.exists) {
        return;
    }
    const auto gradient = [](float, float g) -> double { return g; };
    const double total =
        group.by_warp ? ReadChannel<Number, kWarp>{group.activations, group.gradients, group.size}.sum(gradient)
                      : ReadChannel<Number, kThreads>{group.activations, group.gradients, group.size}.sum(gradient);
    group.write(weights, static_cast<float>(total / group.size));
}

// The same by another rule. Of reading and holding, each size gets what is faster on an H200.
template <typename Number>
__device__ void weigh_channels(const Layers& layers, float* weights, Rule rule) {
    const GroupOfChannel<Number> group(layers);
    if (!group.exists) {
        return;
    }
    const Number* const a = group.activations;
    const Number* const g = group.gradients;
    float weight = 0.0F;
    if (group.size <= kHeldByWarp * kWarp) {
        weight = weight_of(HeldChannel<Number, kWarp, kHeldByWarp>(a, g, group.size), rule);
    } else if (group.by_warp) {
        weight = weight_of(ReadChannel<Number, kWarp>{a, g, group.size}, rule);
    } else if (group.size <= kHeld * kThreads) {
        weight = weight_of(HeldChannel<Number, kThreads, kHeld>(a, g, group.size), rule);
    } else {
        weight = weight_of(ReadChannel<Number, kThreads>{a, g, group.size}, rule);
    }
    group.write(weights, weight);
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

extern "C" __global__ void __launch_bounds__(camrt::kThreads) mean_gradients_f32(camrt::Layers layers, float* weights) {
    camrt::mean_gradients<float>(layers, weights);
}

extern "C" __global__ void __launch_bounds__(camrt::kThreads) mean_gradients_f16(camrt::Layers layers, float* weights) {
    camrt::mean_gradients<Half>(layers, weights);
}

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
