#include "camrt/cpu.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace camrt {
namespace {

struct Variant {
    std::string_view name;
    const HotLoops* loops;
    const PerturbationLoops* perturbation;
    bool supported;
};

std::vector<Variant> all_variants() {
    std::vector<Variant> variants = {
        {"baseline", &simd::baseline::hot_loops, &simd::baseline::perturbation_loops, true}};
#ifdef CAMRT_X86
    const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                        __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
    variants.push_back({"avx2", &simd::avx2::hot_loops, &simd::avx2::perturbation_loops, avx2});
    variants.push_back({"avx512", &simd::avx512::hot_loops, &simd::avx512::perturbation_loops, avx512});
#endif
    return variants;
}

struct Selection {
    CpuFeatures features;
    const HotLoops* loops = nullptr;
    const PerturbationLoops* perturbation = nullptr;
};

Selection select() {
    const char* setting = std::getenv("CAMRT_CPU");
    const std::string_view limit = setting == nullptr ? "" : setting;
    constexpr std::string_view names[] = {"baseline", "avx2", "avx512"};
    if (!limit.empty() && std::find(std::begin(names), std::end(names), limit) == std::end(names)) {
        throw std::invalid_argument("CAMRT_CPU is '" + std::string(limit) +
                                    "'; expected baseline, avx2 or avx512. Correct it or unset it.");
    }
    Selection selection;
    bool within_limit = true;
    for (const Variant& variant : all_variants()) {
        if (!variant.supported) {
            continue;
        }
        selection.features.available.emplace_back(variant.name);
        if (within_limit) {
            selection.features.active = variant.name;
            selection.loops = variant.loops;
            selection.perturbation = variant.perturbation;
        }
        within_limit = within_limit && variant.name != limit;
    }
    return selection;
}

const Selection& selection() {
    static const Selection chosen = select();
    return chosen;
}

}  // namespace

const CpuFeatures& cpu_features() { return selection().features; }

const HotLoops& hot_loops() { return *selection().loops; }

const PerturbationLoops& perturbation_loops() { return *selection().perturbation; }

}  // namespace camrt
