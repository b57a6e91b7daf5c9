// Plain types shared by the portable code and the hot loops. Nothing in here may define a function: the hot loops are
// compiled for several instruction sets, and an inline function of theirs must never replace a portable one.
#pragma once

#include <cstddef>

namespace camrt {

enum class Rule { gradcam, gradcam_plus_plus, xgradcam, hirescam, gradcam_elementwise, layercam };
enum class Fusion { product, geometric, log_exp, exp_mean, mean, max };
enum class Order { normalize_twice, resize_once };

// Added to the denominators of min-max, xgradcam and gradcam++.
constexpr float kNormalizeEpsilon = 1e-7F;
constexpr float kXGradCamEpsilon = 1e-7F;
constexpr float kPlusPlusEpsilon = 1e-6F;

// Every variant adds in this many interleaved partial sums, so results do not depend on the instruction set.
constexpr std::size_t kLanes = 16;

}  // namespace camrt
