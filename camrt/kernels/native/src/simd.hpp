// Vectors of kLanes floats for the hot loops, on GCC's and Clang's vector extensions. Included by one hot-loop source
// only; everything has internal linkage, and nothing of the standard library is instantiated (see types.hpp).
#pragma once

#include "camrt/types.hpp"

#if defined(__AVX512F__)
#define CAMRT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CAMRT_VECTOR_BYTES 32
#else
#define CAMRT_VECTOR_BYTES 16
#endif

namespace {

using Index = std::ptrdiff_t;

constexpr int kWidth = CAMRT_VECTOR_BYTES / 4;
constexpr int kLaneCount = static_cast<int>(camrt::kLanes);
constexpr int kParts = kLaneCount / kWidth;

typedef float Vector __attribute__((vector_size(CAMRT_VECTOR_BYTES)));
typedef int IntVector __attribute__((vector_size(CAMRT_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(CAMRT_VECTOR_BYTES)));
typedef float HalfVector __attribute__((vector_size(CAMRT_VECTOR_BYTES / 2)));

inline Vector broadcast(float value) { return value - Vector{}; }

template <typename Register, typename Element>
inline Register load(const Element* address) {
    Register loaded;
    __builtin_memcpy(&loaded, address, sizeof loaded);
    return loaded;
}

template <typename Register, typename Element>
inline void store(Element* address, Register value) {
    __builtin_memcpy(address, &value, sizeof value);
}

// A NaN in `b` is kept, one in `a` is not.
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }

// The kWidth elements that start `shift` elements into (first, second), 0 <= shift < kWidth.
template <int shift>
inline Vector from_pair(Vector first, Vector second) {
#if defined(__clang__)
    Vector result = first;
    for (int k = 0; k < kWidth; ++k) {
        result[k] = k + shift < kWidth ? first[k + shift] : second[k + shift - kWidth];
    }
    return result;
#else
    IntVector places = {};
    for (int k = 0; k < kWidth; ++k) {
        places[k] = k + shift;
    }
    return __builtin_shuffle(first, second, places);
#endif
}

// kLanes floats, in as many registers as that takes here.
struct Lanes {
    Vector part[kParts];
};

inline Lanes load_lanes(const float* address) {
    Lanes loaded;
    for (int k = 0; k < kParts; ++k) {
        loaded.part[k] = load<Vector>(address + k * kWidth);
    }
    return loaded;
}

// The last `count` of kLanes floats, zeros before them.
inline Lanes load_last_lanes(const float* address, Index count) {
    alignas(64) static const int mask[2 * kLaneCount] = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    Lanes loaded;
    for (int k = 0; k < kParts; ++k) {
        const IntVector bits = load<IntVector>(address + k * kWidth) & load<IntVector>(mask + count + k * kWidth);
        loaded.part[k] = reinterpret_cast<Vector>(bits);
    }
    return loaded;
}

// kLanes double-precision partial sums.
struct DoubleLanes {
    DoubleVector part[2 * kParts] = {};

    void add(const Lanes& values) {
        for (int k = 0; k < kParts; ++k) {
            HalfVector half[2];
            __builtin_memcpy(half, &values.part[k], sizeof half);
            part[2 * k] += __builtin_convertvector(half[0], DoubleVector);
            part[2 * k + 1] += __builtin_convertvector(half[1], DoubleVector);
        }
    }

    void add_product(const Lanes& a, const Lanes& b) {
        for (int k = 0; k < kParts; ++k) {
            HalfVector left[2];
            HalfVector right[2];
            __builtin_memcpy(left, &a.part[k], sizeof left);
            __builtin_memcpy(right, &b.part[k], sizeof right);
            for (int j = 0; j < 2; ++j) {
                part[2 * k + j] +=
                    __builtin_convertvector(left[j], DoubleVector) * __builtin_convertvector(right[j], DoubleVector);
            }
        }
    }

    // Each step adds the upper half of what is left to its lower half: the same order in every variant.
    [[nodiscard]] double total() const {
        DoubleVector sum[kParts];
        for (int k = 0; k < kParts; ++k) {
            sum[k] = part[k] + part[k + kParts];
        }
        for (int count = kParts / 2; count > 0; count /= 2) {
            for (int k = 0; k < count; ++k) {
                sum[k] += sum[k + count];
            }
        }
        double lanes[kWidth / 2];
        __builtin_memcpy(lanes, sum, sizeof lanes);
        for (int count = kWidth / 4; count > 0; count /= 2) {
            for (int i = 0; i < count; ++i) {
                lanes[i] += lanes[i + count];
            }
        }
        return lanes[0];
    }
};

// exp(x) for x <= 0, relative error 2e-7; exactly 0 below -87.
inline Vector exp_of_negative(Vector x) {
    const Vector clamped = larger(x, broadcast(-87.0F));
    const Vector shifter = broadcast(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
    const Vector exponent = (clamped * 1.44269504088896341F + shifter) - shifter;
    // ln 2 in two parts, the first with few bits, so that the difference is exact.
    const Vector r = (clamped - exponent * 0.693359375F) - exponent * -2.12194440e-4F;
    Vector series = broadcast(1.0F / 5040.0F);
    series = series * r + 1.0F / 720.0F;
    series = series * r + 1.0F / 120.0F;
    series = series * r + 1.0F / 24.0F;
    series = series * r + 1.0F / 6.0F;
    series = series * r + 0.5F;
    series = series * r + 1.0F;
    series = series * r + 1.0F;
    const IntVector power = (__builtin_convertvector(exponent, IntVector) + 127) << 23;
    const Vector result = series * reinterpret_cast<Vector>(power);
    return x < -87.0F ? Vector{} : result;
}

// ln(x) for normal x > 0, absolute error 2e-7 plus 1e-7 relative.
inline Vector log_of_positive(Vector x) {
    const IntVector bits = reinterpret_cast<IntVector>(x);
    // Moves the mantissa to [sqrt(1/2), sqrt(2)).
    const IntVector exponent = (bits - 0x3f3504f3) >> 23;
    const Vector mantissa = reinterpret_cast<Vector>(bits - (exponent << 23));
    const Vector s = (mantissa - 1.0F) / (mantissa + 1.0F);
    const Vector square = s * s;
    Vector series = broadcast(2.0F / 9.0F);
    series = series * square + 2.0F / 7.0F;
    series = series * square + 2.0F / 5.0F;
    series = series * square + 2.0F / 3.0F;
    series = series * square + 2.0F;
    return __builtin_convertvector(exponent, Vector) * 0.69314718055994531F + series * s;
}

}  // namespace
