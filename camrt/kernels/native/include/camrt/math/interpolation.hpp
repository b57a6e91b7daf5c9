// Linear interpolation with pixel centres at half-integers and repeated edges.
#pragma once

#include "camrt/math/platform.hpp"

namespace camrt {

// The elements on both sides of a point, and the share of the second one.
struct Tap {
    int low;
    int high;
    float fraction;
};

// At `point`, in pixels, of an axis of `length` elements.
CAMRT_HOST_DEVICE Tap tap_at(double point, int length) {
    const double last = static_cast<double>(length - 1);
    const double shifted = point - 0.5;
    const double position = shifted < 0.0 ? 0.0 : (shifted > last ? last : shifted);
    const int low = static_cast<int>(position);
    const float fraction = static_cast<float>(position - low);
    // Without a share, the second neighbour is not read: an infinite one must not turn into NaN.
    const bool shared = fraction > 0.0F && low + 1 < length;
    return {low, shared ? low + 1 : low, fraction};
}

// Where output `index` of `count` lies in the whole of `length` elements. Rounding may put the last centre of a very
// long axis outside; every output of a resize is inside.
CAMRT_HOST_DEVICE double resized_point(int index, int count, int length) {
    const double limit = static_cast<double>(length);
    const double point = (static_cast<double>(index) + 0.5) * (limit / static_cast<double>(count));
    return point < limit ? point : limit;
}

template <typename Number>
CAMRT_HOST_DEVICE Number blend(Number first, Number second, Number fraction) {
    return first + (second - first) * fraction;
}

// Bilinear: along the rows first.
CAMRT_HOST_DEVICE float sample_between(const float* map, int width, const Tap& down, const Tap& across) {
    const float* const upper = map + static_cast<long long>(down.low) * width;
    const float* const lower = map + static_cast<long long>(down.high) * width;
    const float above = blend(upper[across.low], upper[across.high], across.fraction);
    const float below = blend(lower[across.low], lower[across.high], across.fraction);
    return blend(above, below, down.fraction);
}

// At (x, y) in pixels; 0 outside of [0, width] x [0, height].
CAMRT_HOST_DEVICE float sample_at(const float* map, int height, int width, double x, double y) {
    if (!(x >= 0.0 && x <= static_cast<double>(width) && y >= 0.0 && y <= static_cast<double>(height))) {
        return 0.0F;
    }
    return sample_between(map, width, tap_at(y, height), tap_at(x, width));
}

}  // namespace camrt
