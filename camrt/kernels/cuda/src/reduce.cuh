// Reductions over the threads of a warp or a block. The order is fixed by the shape of the block alone.
#pragma once

namespace camrt {

constexpr int kWarp = 32;

struct Add {
    template <typename Number>
    __device__ Number operator()(Number a, Number b) const {
        return a + b;
    }
};
struct Smallest {
    __device__ float operator()(float a, float b) const { return a < b ? a : b; }
};
struct Largest {
    __device__ float operator()(float a, float b) const { return a > b ? a : b; }
};

__device__ inline int thread_number() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

// Every thread of the warp gets the result.
template <typename Number, typename Operation>
__device__ Number reduce_warp(Number value, const Operation& operation) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value = operation(value, __shfl_xor_sync(0xffffffffU, value, step));
    }
    return value;
}

// Every thread of a block of `kThreads` threads, a multiple of kWarp, gets the result.
template <int kThreads, typename Number, typename Operation>
__device__ Number reduce_block(Number value, const Operation& operation) {
    __shared__ Number parts[kThreads / kWarp];
    const int thread = thread_number();
    value = reduce_warp(value, operation);
    __syncthreads();  // `parts` may still be read from the reduction before
    if (thread % kWarp == 0) {
        parts[thread / kWarp] = value;
    }
    __syncthreads();
    Number result = parts[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) {
        result = operation(result, parts[warp]);
    }
    return result;
}

struct Range {
    float lowest;
    float highest;
};

template <int kThreads>
__device__ Range reduce_range(Range range) {
    return {reduce_block<kThreads>(range.lowest, Smallest{}), reduce_block<kThreads>(range.highest, Largest{})};
}

// Neutral for Smallest and Largest.
__device__ inline Range empty_range() { return {__int_as_float(0x7f800000), __int_as_float(0xff800000)}; }

__device__ inline Range extended(Range range, float value) {
    return {value < range.lowest ? value : range.lowest, value > range.highest ? value : range.highest};
}

// Whether a value is neither NaN nor infinite.
__device__ inline bool is_finite(float value) { return value - value == 0.0F; }

}  // namespace camrt
