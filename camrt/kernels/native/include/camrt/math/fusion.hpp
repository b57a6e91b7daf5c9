// Fusion of the values of several layers at one pixel, one layer after the other. The formulas are those of the Python
// protocol (camrt/kernels/backend.py).
#pragma once

#ifndef __CUDACC_RTC__
#include <math.h>
#endif

#include "camrt/math/constants.hpp"
#include "camrt/math/platform.hpp"

namespace camrt {

// What is known of a pixel so far. `first` is the product, sum, largest value, sum of logarithms, or
// sum_l exp(1 / m_l - 1 / lowest), as the fusion needs.
struct Fused {
    float first;
    float lowest;
};

CAMRT_HOST_DEVICE float smaller_of(float a, float b) { return a < b ? a : b; }
CAMRT_HOST_DEVICE float larger_of(float a, float b) { return a > b ? a : b; }

// exp(1 / value - 1 / lowest), lowest <= value, over a common denominator.
CAMRT_HOST_DEVICE float inverse_exponential(float lowest, float value) {
    return expf((lowest - value) / larger_of(value * lowest, kSmallestNormal));
}

CAMRT_HOST_DEVICE float logarithm_above_zero(float value) { return logf(larger_of(value, kSmallestNormal)); }

// The first layer's value.
CAMRT_HOST_DEVICE Fused begin_fusion(Fusion fusion, float value) {
    switch (fusion) {
        case Fusion::geometric:
            return {logarithm_above_zero(value), value};
        case Fusion::log_exp:
        case Fusion::exp_mean:
            return {1.0F, value};
        default:
            return {value, value};
    }
}

// One more layer's value.
CAMRT_HOST_DEVICE Fused continue_fusion(Fusion fusion, Fused fused, float value) {
    const float lowest = smaller_of(fused.lowest, value);
    switch (fusion) {
        case Fusion::product:
            return {fused.first * value, lowest};
        case Fusion::mean:
            return {fused.first + value, lowest};
        case Fusion::max:
            return {larger_of(fused.first, value), lowest};
        case Fusion::geometric:
            return {fused.first + logarithm_above_zero(value), lowest};
        default:
            return {fused.first * inverse_exponential(lowest, fused.lowest) + inverse_exponential(lowest, value),
                    lowest};
    }
}

CAMRT_HOST_DEVICE float finish_fusion(Fusion fusion, Fused fused, int layers) {
    const float count = static_cast<float>(layers);
    const float lowest = fused.lowest;
    switch (fusion) {
        case Fusion::mean:
            return fused.first / count;
        case Fusion::geometric:
            return lowest > 0.0F ? expf(fused.first / count) : 0.0F;
        // m_min * numerator / (1 + m_min * (ln sum - offset)): the form of both means that has no large exponent.
        case Fusion::log_exp:
            return lowest > 0.0F ? lowest * (logf(count) + 1.0F) / (1.0F + lowest * logf(fused.first)) : 0.0F;
        case Fusion::exp_mean:
            return lowest > 0.0F ? lowest / (1.0F + lowest * (logf(fused.first) - logf(count))) : 0.0F;
        default:
            return fused.first;
    }
}

}  // namespace camrt
