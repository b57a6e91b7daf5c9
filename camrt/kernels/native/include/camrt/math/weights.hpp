// The weights of the CAM rules, for one element or a vector of them. The formulas are those of the Python protocol
// (camrt/kernels/backend.py).
#pragma once

#include "camrt/math/constants.hpp"
#include "camrt/math/platform.hpp"

namespace camrt {

// relu(g) * g^2 / (2 g^2 + total * g^3 + epsilon); `total` is the sum of the channel's activations. NaN stays NaN.
template <typename Number>
CAMRT_HOST_DEVICE Number plus_plus_term(Number gradient, Number total) {
    const Number square = gradient * gradient;
    const Number alpha = square / (2.0F * square + total * (square * gradient) + kPlusPlusEpsilon);
    return gradient <= 0.0F ? Number{} : gradient * alpha;
}

// Both sums are over the channel.
CAMRT_HOST_DEVICE float xgradcam_weight(double products, double total) {
    return static_cast<float>(products) / (static_cast<float>(total) + kXGradCamEpsilon);
}

// `rule` is one of the three pixel rules. NaN stays NaN.
template <Rule rule, typename Number>
CAMRT_HOST_DEVICE Number pixel_weight(Number activation, Number gradient) {
    if constexpr (rule == Rule::hirescam) {
        return gradient;
    } else if constexpr (rule == Rule::gradcam_elementwise) {
        return gradient * activation <= 0.0F ? Number{} : gradient;
    } else {
        return gradient <= 0.0F ? Number{} : gradient;
    }
}

}  // namespace camrt
