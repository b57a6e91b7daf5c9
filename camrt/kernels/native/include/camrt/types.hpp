// Plain types shared by the portable code and the hot loops. Nothing in here may define a function: the hot loops are
// compiled for several instruction sets, and an inline function of theirs must never replace a portable one. (Those of
// camrt/math have internal linkage.)
#pragma once

#include <cstddef>

#include "camrt/math/constants.hpp"

namespace camrt {

// Every variant adds in this many interleaved partial sums, so results do not depend on the instruction set.
constexpr std::size_t kLanes = 16;

}  // namespace camrt
