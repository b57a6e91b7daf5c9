// The choices and constants of the kernels. No function and no standard header: NVRTC reads this too.
#pragma once

namespace camrt {

enum class Rule { gradcam, gradcam_plus_plus, xgradcam, hirescam, gradcam_elementwise, layercam };
enum class Fusion { product, geometric, log_exp, exp_mean, mean, max };
enum class Order { normalize_twice, resize_once };

// Added to the denominators of min-max, xgradcam and gradcam++.
constexpr float kNormalizeEpsilon = 1e-7F;
constexpr float kXGradCamEpsilon = 1e-7F;
constexpr float kPlusPlusEpsilon = 1e-6F;
constexpr float kSmallestNormal = 1.17549435e-38F;

}  // namespace camrt
