#include "camrt/fusion.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "camrt/cpu.hpp"
#include "camrt/scratch.hpp"

namespace camrt {
namespace {

constexpr std::size_t kRowsPerBand = 32;
constexpr std::size_t kMostWideFloats = std::size_t{1} << 28;  // of one map: all rows of its layers at output width

// What does not depend on the class: how the rows and columns of one layer spread over the output.
struct LayerPlan {
    const MapStack* maps;
    Axis rows;
    Axis columns;

    // Working memory of one map: its rows at the output's width, and one source row with room to read past its end.
    [[nodiscard]] std::size_t wide_floats() const { return maps->height * columns.padded(); }
    [[nodiscard]] std::size_t source_floats() const { return round_up(maps->width + kLanes, kLanes); }
};

// One map of a layer, interpolated to the output's width but still of the layer's height. The normalization after the
// resize waits until the rows are blended: there the lowest value gives exactly 0, which the roots among the fusions
// need.
struct WideMap {
    const LayerPlan* plan;
    float* floats;
    float* source;
    float lowest = 0.0F;
    float scale = 1.0F;

    [[nodiscard]] LayerRows rows() const { return {floats, plan->columns.padded(), plan->rows.taps(), lowest, scale}; }
};

Range merge(const Range& a, const Range& b) {
    return {std::min(a.lowest, b.lowest), std::max(a.highest, b.highest), a.finite && b.finite};
}

float denominator_of(const Range& range) { return range.highest - range.lowest + kNormalizeEpsilon; }

// Normalizes a map of the layer and interpolates its rows. Returns whether the map was degenerate.
bool prepare(const HotLoops& loops, WideMap& wide, std::size_t index, Order order) {
    const MapStack& maps = *wide.plan->maps;
    const float* const map = maps.map(index);
    const std::size_t stride = wide.plan->columns.padded();
    Range range = loops.range(map, maps.size());
    range.lowest = std::max(range.lowest, 0.0F);
    range.highest = std::max(range.highest, 0.0F);
    if (!range.finite || range.highest == range.lowest) {
        std::fill_n(wide.floats, wide.plan->wide_floats(), 0.0F);
        return true;
    }
    std::fill_n(wide.source + maps.width, kLanes, 0.0F);
    for (std::size_t row = 0; row < maps.height; ++row) {
        loops.normalize(map + row * maps.width, maps.width, range.lowest, denominator_of(range), wide.source);
        loops.resample_row(wide.source, wide.plan->columns.taps(), wide.floats + row * stride);
    }
    if (order == Order::normalize_twice) {
        const Range resized = loops.blended_range(wide.rows(), wide.plan->rows.count());
        wide.lowest = resized.lowest;
        wide.scale = 1.0F / denominator_of(resized);
    }
    return false;
}

// Everything that the maps of one call share.
struct Fusing {
    const HotLoops& loops;
    std::span<const LayerPlan> plans;
    std::size_t height;
    std::size_t width;
    Fusion fusion;
    Order order;

    [[nodiscard]] std::size_t scratch_floats() const {
        std::size_t floats = 0;
        for (const LayerPlan& plan : plans) {
            floats += plan.wide_floats() + plan.source_floats();
        }
        return floats;
    }
};

// One class: the layers are prepared, fused band by band, and the result is normalized where it lies.
void fuse_map(const Fusing& fusing, std::size_t index, float* output, bool* degenerate, ThreadPool& pool) {
    Scratch scratch(fusing.scratch_floats());
    std::vector<WideMap> wide;
    for (const LayerPlan& plan : fusing.plans) {
        float* const rows = scratch.take(plan.wide_floats());
        wide.push_back({&plan, rows, scratch.take(plan.source_floats())});
    }
    pool.run(wide.size(), fusing.scratch_floats(),
             [&](std::size_t layer) { degenerate[layer] = prepare(fusing.loops, wide[layer], index, fusing.order); });
    std::vector<LayerRows> layers(wide.size());
    std::transform(wide.begin(), wide.end(), layers.begin(), [](const WideMap& map) { return map.rows(); });
    const std::size_t size = fusing.height * fusing.width;
    const std::size_t bands = (fusing.height - 1) / kRowsPerBand + 1;
    std::vector<Range> ranges(bands);
    std::vector<LayerRow> work(bands * layers.size());
    pool.run(bands, size * layers.size(), [&](std::size_t band) {
        const std::size_t first = band * kRowsPerBand;
        const std::size_t last = std::min(first + kRowsPerBand, fusing.height);
        ranges[band] = fusing.loops.fuse_rows(fusing.fusion, layers.data(), layers.size(), first, last, fusing.width,
                                              work.data() + band * layers.size(), output);
    });
    Range range = ranges.front();
    for (const Range& band : ranges) {
        range = merge(range, band);
    }
    pool.run(bands, size, [&](std::size_t band) {
        const std::size_t first = band * kRowsPerBand * fusing.width;
        const std::size_t count = std::min(kRowsPerBand * fusing.width, size - first);
        fusing.loops.rescale(output + first, count, range.lowest, 1.0F / denominator_of(range));
    });
}

std::vector<LayerPlan> make_plans(std::span<const MapStack> layers, std::size_t height, std::size_t width) {
    std::vector<LayerPlan> plans;
    plans.reserve(layers.size());
    for (const MapStack& maps : layers) {
        Axis rows = resized_axis(maps.height, height);
        Axis columns = maps.height == maps.width && height == width ? rows : resized_axis(maps.width, width);
        plans.push_back({&maps, std::move(rows), std::move(columns)});
    }
    return plans;
}

void fuse_at(std::span<const MapStack> layers, std::size_t height, std::size_t width, Fusion fusion, Order order,
             std::span<float> output, std::span<bool> degenerate, ThreadPool& pool) {
    const std::vector<LayerPlan> plans = make_plans(layers, height, width);
    const Fusing fusing{hot_loops(), plans, height, width, fusion, order};
    const std::size_t size = height * width;
    // With several classes each is one task; the steps inside then find the pool taken and stay on their thread.
    pool.run(layers.front().count, output.size() * layers.size(), [&](std::size_t index) {
        fuse_map(fusing, index, output.data() + index * size, degenerate.data() + index * layers.size(), pool);
    });
}

}  // namespace

void fuse_layers(std::span<const MapStack> layers, std::size_t height, std::size_t width, Fusion fusion, Order order,
                 std::span<float> output, std::span<bool> degenerate, ThreadPool& pool) {
    if (layers.empty()) {
        throw std::invalid_argument("at least one layer is needed");
    }
    const std::size_t count = layers.front().count;
    std::size_t tallest = 0;
    std::size_t widest = 0;
    std::size_t rows = 0;
    for (const MapStack& maps : layers) {
        check(maps);
        if (maps.count != count) {
            throw std::invalid_argument("the layers have different numbers of maps");
        }
        tallest = std::max(tallest, maps.height);
        widest = std::max(widest, maps.width);
        rows += maps.height;
    }
    if (std::max(height, width) > kLongestAxis || rows * std::max(width, widest) > kMostWideFloats) {
        throw std::invalid_argument("the output has an axis beyond 2^24, or is too wide for so many rows");
    }
    if (height == 0 || width == 0 || output.size() != count * height * width ||
        degenerate.size() != count * layers.size()) {
        throw std::invalid_argument("an output has an empty axis or not its shape's size");
    }
    if (order == Order::normalize_twice) {
        return fuse_at(layers, height, width, fusion, order, output, degenerate, pool);
    }
    std::vector<float> fused(count * tallest * widest);
    fuse_at(layers, tallest, widest, fusion, order, fused, degenerate, pool);
    resize({fused, count, tallest, widest}, height, width, output, pool);
}

}  // namespace camrt
