// Which build of the hot loops runs here.
#pragma once

#include <string>
#include <vector>

#include "camrt/hot_loops.hpp"
#include "camrt/perturbation_loops.hpp"

namespace camrt {

struct CpuFeatures {
    std::string active;
    std::vector<std::string> available;  // slowest first
};

// The fastest variant that this processor has, at most the one named by the environment variable CAMRT_CPU.
// Throws std::invalid_argument if CAMRT_CPU names no variant.
const CpuFeatures& cpu_features();

const HotLoops& hot_loops();
const PerturbationLoops& perturbation_loops();

}  // namespace camrt
