// Uninitialised working memory for floats, aligned to cache lines.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "camrt/types.hpp"

namespace camrt {

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

class Scratch {
 public:
    explicit Scratch(std::size_t count) : floats_(kSeparate ? nullptr : allocate(count)), count_(count) {}

    // The next `count` floats; what follows starts on a cache line.
    float* take(std::size_t count) {
        const std::size_t begin = taken_;
        taken_ += round_up(count, kLanes);
        if (taken_ > count_) {
            throw std::bad_alloc();
        }
        if constexpr (kSeparate) {
            return separate_.emplace_back(allocate(count)).get();
        }
        return floats_.get() + begin;
    }

 private:
    static constexpr std::align_val_t kAlignment{64};
    struct Release {
        void operator()(float* floats) const { ::operator delete(floats, kAlignment); }
    };
    using Floats = std::unique_ptr<float[], Release>;

    // With AddressSanitizer every piece is an allocation of its own, so that it sees accesses beyond one.
#ifdef __SANITIZE_ADDRESS__
    static constexpr bool kSeparate = true;
#else
    static constexpr bool kSeparate = false;
#endif

    static float* allocate(std::size_t count) {
        return static_cast<float*>(::operator new(count * sizeof(float), kAlignment));
    }

    Floats floats_;
    std::vector<Floats> separate_;
    std::size_t count_;
    std::size_t taken_ = 0;
};

}  // namespace camrt
