// Runs CUDA kernels on the CPU, exactly as their source stands: every thread of a block is a fiber with a stack of its
// own, which runs until it waits at a barrier or a shuffle. A block in which nobody can go on (a barrier that some of
// its threads never reach) is an error. The order of the fibers can be changed, which changes the results of races.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct Index3 {
    unsigned x = 1;
    unsigned y = 1;
    unsigned z = 1;
};

inline Index3 threadIdx;
inline Index3 blockIdx;
inline Index3 blockDim;
inline Index3 gridDim;

namespace host {

// CuPy compiles with -ftz=true: numbers below the smallest normal one count as 0.
struct FlushToZero {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040U); }
    ~FlushToZero() { _mm_setcsr(before); }
#endif
};

constexpr int kWarpSize = 32;
constexpr std::size_t kStack = 64 * 1024;

struct Barrier {
    int expected = 0;
    int arrived = 0;
    unsigned generation = 0;
};

struct Body {
    virtual void run() = 0;
    virtual ~Body() = default;
};

struct Fiber {
    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t context{};
    jmp_buf place{};
    bool started = false;
    bool done = false;
    Index3 index;
    const Barrier* waits_for = nullptr;
    unsigned generation = 0;
};

struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Barrier> warps;
    std::vector<char> exchanged;  // 16 bytes a thread
    Barrier all;
    Body* body = nullptr;
    ucontext_t scheduler{};
    jmp_buf home{};
    int current = 0;
    bool progress = false;
    int order = 0;  // in which the fibers take turns, see turn()
};

inline Block block;

inline void enter() {
    for (;;) {
        block.body->run();
        Fiber& self = *block.fibers[static_cast<std::size_t>(block.current)];
        self.done = true;
        block.progress = true;
        if (_setjmp(self.place) == 0) {
            _longjmp(block.home, 1);
        }
    }
}

inline void wait(Barrier& barrier) {
    Fiber& self = *block.fibers[static_cast<std::size_t>(block.current)];
    block.progress = true;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    self.waits_for = &barrier;
    self.generation = barrier.generation;
    if (_setjmp(self.place) == 0) {
        _longjmp(block.home, 1);
    }
    self.waits_for = nullptr;
}

inline void resume(Fiber& fiber) {
    if (_setjmp(block.home) != 0) {
        return;
    }
    if (fiber.started) {
        _longjmp(fiber.place, 1);
    }
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    setcontext(&fiber.context);
}

// The k-th fiber of a round: from the first to the last, from the last to the first, or mixed, in every round anew. The
// number of threads is a power of two, so an odd step reaches all of them.
inline int turn(int k, int round, int threads) {
    switch (block.order) {
        case 0:
            return k;
        case 1:
            return threads - 1 - k;
        default:
            return (k * (2 * block.order + 1) + round * 13) % threads;
    }
}

inline void run_block(int threads) {
    while (static_cast<int>(block.fibers.size()) < threads) {
        block.fibers.push_back(std::make_unique<Fiber>());
    }
    block.all = {threads, 0, 0};
    block.warps.assign(static_cast<std::size_t>((threads + kWarpSize - 1) / kWarpSize), Barrier{kWarpSize, 0, 0});
    block.exchanged.assign(static_cast<std::size_t>(threads) * 16, 0);
    for (int thread = 0; thread < threads; ++thread) {
        Fiber& fiber = *block.fibers[static_cast<std::size_t>(thread)];
        const auto number = static_cast<unsigned>(thread);
        fiber.done = false;
        fiber.waits_for = nullptr;
        fiber.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
    }
    int round = 0;
    for (int left = threads; left > 0; ++round) {
        block.progress = false;
        for (int k = 0; k < threads; ++k) {
            block.current = turn(k, round, threads);
            Fiber& fiber = *block.fibers[static_cast<std::size_t>(block.current)];
            if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation)) {
                continue;
            }
            threadIdx = fiber.index;
            resume(fiber);
            left -= fiber.done ? 1 : 0;
        }
        if (!block.progress) {
            std::fprintf(stderr, "block (%u, %u, %u): some threads wait at a barrier that others never reach\n",
                         blockIdx.x, blockIdx.y, blockIdx.z);
            std::abort();
        }
    }
}

template <typename Function>
struct BodyOf final : Body {
    Function function;
    explicit BodyOf(Function f) : function(f) {}
    void run() override { function(); }
};

template <typename... Arguments, std::size_t... I>
void launch(void (*kernel)(Arguments...), const unsigned* dims, void** arguments, std::index_sequence<I...>) {
    const FlushToZero flush;
    gridDim = {dims[0], dims[1], dims[2]};
    blockDim = {dims[3], dims[4], dims[5]};
    const auto call = [&] { kernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[I])...); };
    BodyOf<decltype(call)> body(call);
    block.body = &body;
    for (unsigned z = 0; z < gridDim.z; ++z) {
        for (unsigned y = 0; y < gridDim.y; ++y) {
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = {x, y, z};
                run_block(static_cast<int>(blockDim.x * blockDim.y * blockDim.z));
            }
        }
    }
}

template <typename... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned* dims, void** arguments) {
    launch(kernel, dims, arguments, std::index_sequence_for<Arguments...>{});
}

}  // namespace host

inline void __syncthreads() { host::wait(host::block.all); }

template <typename Number>
Number __shfl_xor_sync(unsigned, Number value, int lanes) {
    static_assert(sizeof(Number) <= 16);
    const int thread = host::block.current;
    host::Barrier& warp = host::block.warps[static_cast<std::size_t>(thread / host::kWarpSize)];
    std::memcpy(&host::block.exchanged[static_cast<std::size_t>(thread) * 16], &value, sizeof value);
    host::wait(warp);
    Number other;
    std::memcpy(&other, &host::block.exchanged[static_cast<std::size_t>(thread ^ lanes) * 16], sizeof other);
    host::wait(warp);
    return other;
}

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
// Fibers are not interrupted.
inline unsigned atomicMax(unsigned* address, unsigned value) {
    const unsigned before = *address;
    *address = value > before ? value : before;
    return before;
}
inline float __int_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }

// `dims`: the grid, then the block. `arguments`: the address of each, as in cuLaunchKernel.
#define CAMRT_HOST_KERNEL(name) \
    extern "C" void host_##name(const unsigned* dims, void** arguments) { host::launch(name, dims, arguments); }
