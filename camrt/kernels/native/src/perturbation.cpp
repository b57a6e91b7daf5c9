#include "camrt/perturbation.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "camrt/cpu.hpp"
#include "camrt/imputation.hpp"

namespace camrt {
namespace {

constexpr double kPearsonEpsilon = 1e-8;
// Work of imputation, in elements touched, for each element to fill; see ThreadPool::run.
constexpr std::size_t kImputationCost = 200;

void require(bool fits) {
    if (!fits) {
        throw std::invalid_argument("an array has an empty axis or not its shape's size");
    }
}

void check(const ImageStack& images) {
    require(images.count > 0 && images.size() > 0 && images.values.size() == images.count * images.size());
}

// A place between two ranks, as in NumPy's linear quantiles.
struct Place {
    std::size_t low;
    std::size_t high;
    double fraction;

    Place(double share, std::size_t count) {
        const double position = share * static_cast<double>(count - 1);
        low = std::min(static_cast<std::size_t>(position), count - 1);
        high = std::min(low + 1, count - 1);
        fraction = position - static_cast<double>(low);
    }

    [[nodiscard]] double between(double first, double second) const {
        const double difference = second - first;
        return fraction >= 0.5 ? second - difference * (1.0 - fraction) : first + difference * fraction;
    }
};

// Thresholds of m, then of 1 - m, whose ranks are those of m from the other end.
std::vector<double> thresholds(const float* map, std::size_t size, std::span<const double> shares) {
    std::vector<std::size_t> ranks;
    for (const double share : shares) {
        const Place place(share, size);
        for (const std::size_t rank : {place.low, place.high}) {
            ranks.push_back(rank);
            ranks.push_back(size - 1 - rank);
        }
    }
    std::sort(ranks.begin(), ranks.end());
    std::vector<float> values(map, map + size);
    std::size_t sorted = 0;
    for (const std::size_t rank : ranks) {  // what lies before `sorted` is in place
        if (rank >= sorted) {
            const auto at = [&](std::size_t i) { return values.begin() + static_cast<std::ptrdiff_t>(i); };
            std::nth_element(at(sorted), at(rank), values.end());
            sorted = rank + 1;
        }
    }
    std::vector<double> result(2 * shares.size());
    for (std::size_t f = 0; f < shares.size(); ++f) {
        const Place place(shares[f], size);
        const auto mirrored = [&](std::size_t rank) { return static_cast<double>(1.0F - values[size - 1 - rank]); };
        result[f] = place.between(static_cast<double>(values[place.low]), static_cast<double>(values[place.high]));
        result[shares.size() + f] = place.between(mirrored(place.low), mirrored(place.high));
    }
    return result;
}

// The smallest float that is not below the limit: floats are below one as they are below the other.
float narrowed(double limit) {
    const auto nearest = static_cast<float>(limit);
    return static_cast<double>(nearest) < limit ? std::nextafter(nearest, std::numeric_limits<float>::max()) : nearest;
}

double deviation_of(const PerturbationLoops& loops, const float* channel, std::size_t size) {
    const auto count = static_cast<double>(size);
    const double mean = loops.total(size, channel) / count;
    return std::sqrt(loops.centered_moments(size, channel, mean, channel, mean).first_squares / count);
}

}  // namespace

void keep_masks(const MapStack& maps, std::span<const double> shares, std::span<unsigned char> masks,
                ThreadPool& pool) {
    check(maps);
    const std::size_t size = maps.size();
    const std::size_t count = 2 * shares.size();
    require(masks.size() == maps.count * count * size);
    const PerturbationLoops& loops = perturbation_loops();
    pool.run(maps.count, masks.size(), [&](std::size_t n) {
        const float* const map = maps.map(n);
        const std::vector<double> limits = thresholds(map, size, shares);
        for (std::size_t b = 0; b < count; ++b) {
            loops.keep_below(size, map, b >= shares.size(), narrowed(limits[b]), masks.data() + (n * count + b) * size);
        }
    });
}

void impute(const ImageStack& images, std::span<const unsigned char> keep, std::span<const float> noise,
            std::span<float> output, ThreadPool& pool) {
    check(images);
    const std::size_t size = images.plane();
    const std::size_t masks = keep.size() / (images.count * size);
    require(masks > 0 && keep.size() == images.count * masks * size && output.size() == masks * images.values.size());
    require(noise.empty() || noise.size() == images.size());
    const PerturbationLoops& loops = perturbation_loops();
    std::vector<double> deviations(images.count * images.channels);
    for (std::size_t k = 0; k < deviations.size(); ++k) {
        deviations[k] = deviation_of(loops, images.values.data() + k * size, size);
    }
    const std::size_t jobs = images.count * masks;
    std::atomic<std::size_t> next{0};
    // One task a thread, not one a mask: each has a workspace of its own.
    pool.run(std::min(pool.threads(), jobs), jobs * size * kImputationCost, [&](std::size_t) {
        std::size_t job = next.fetch_add(1);
        if (job >= jobs) {
            return;
        }
        Imputer imputer(images.height, images.width);
        for (; job < jobs; job = next.fetch_add(1)) {
            const unsigned char* const mask = keep.data() + job * size;
            const bool solvable = imputer.set_mask(mask) > 0;
            const std::size_t n = job / masks;
            for (std::size_t c = 0; c < images.channels; ++c) {
                float* const to = output.data() + (job * images.channels + c) * size;
                if (solvable) {
                    imputer.fill(images.image(n) + c * size, deviations[n * images.channels + c], to);
                } else {
                    std::fill_n(to, size, 0.0F);
                }
                if (!noise.empty()) {
                    loops.add_noise(size, mask, noise.data() + c * size, to);
                }
            }
        }
    });
}

void multiply(const ImageStack& images, const MapStack& maps, std::span<float> output, ThreadPool& pool) {
    check(images);
    check(maps);
    require(maps.count == images.count && maps.size() == images.plane() && output.size() == images.values.size());
    const PerturbationLoops& loops = perturbation_loops();
    const std::size_t size = maps.size();
    pool.run(images.count * images.channels, output.size(), [&](std::size_t k) {
        loops.multiply(size, images.values.data() + k * size, maps.map(k / images.channels), output.data() + k * size);
    });
}

void pearson(const MapStack& first, const MapStack& second, std::span<double> output, ThreadPool& pool) {
    check(first);
    check(second);
    const std::size_t size = first.size();
    require(second.count == first.count && second.size() == size && output.size() == first.count);
    const PerturbationLoops& loops = perturbation_loops();
    const auto degrees = static_cast<double>(std::max<std::size_t>(size - 1, 1));
    pool.run(first.count, 4 * first.values.size(), [&](std::size_t n) {
        const float* const a = first.map(n);
        const float* const b = second.map(n);
        const auto elements = static_cast<double>(size);
        const Moments moments =
            loops.centered_moments(size, a, loops.total(size, a) / elements, b, loops.total(size, b) / elements);
        const double deviations =
            std::sqrt(moments.first_squares / degrees) * std::sqrt(moments.second_squares / degrees);
        output[n] = moments.products / degrees / (deviations + kPearsonEpsilon);
    });
}

void mean_absolute(const MapStack& maps, std::span<double> output, ThreadPool& pool) {
    check(maps);
    require(output.size() == maps.count);
    const PerturbationLoops& loops = perturbation_loops();
    pool.run(maps.count, maps.values.size(), [&](std::size_t n) {
        output[n] = loops.absolute_total(maps.size(), maps.map(n)) / static_cast<double>(maps.size());
    });
}

}  // namespace camrt
