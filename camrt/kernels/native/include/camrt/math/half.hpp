// Half-precision numbers, read only.
#pragma once

#include "camrt/math/platform.hpp"

namespace camrt {

struct Half {
    unsigned short bits;
};

CAMRT_HOST_DEVICE float to_float(float value) { return value; }

// Exact: every half-precision number is a float.
CAMRT_HOST_DEVICE float to_float(Half value) {
#ifdef __CUDA_ARCH__
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#else
    const unsigned sign = static_cast<unsigned>(value.bits & 0x8000U) << 16;
    const unsigned exponent = (value.bits >> 10) & 31U;
    const unsigned fraction = value.bits & 1023U;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8F;  // 2^-24
        return sign != 0 ? -magnitude : magnitude;
    }
    const unsigned bits = sign | ((exponent == 31 ? 255U : exponent + 112U) << 23) | (fraction << 13);
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
#endif
}

}  // namespace camrt
