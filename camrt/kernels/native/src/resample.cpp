#include "camrt/resample.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "camrt/cpu.hpp"
#include "camrt/math/interpolation.hpp"
#include "camrt/scratch.hpp"

namespace camrt {
namespace {

constexpr std::size_t kRowsPerTask = 32;

// Whether every `group` neighbouring outputs read at most `group` neighbouring sources.
bool is_compact(const Axis& axis, std::size_t group) {
    bool compact = true;
    for (std::size_t i = 0; i < axis.low.size(); i += group) {
        for (std::size_t k = 0; k < group; ++k) {
            compact =
                compact && axis.low[i + k] >= axis.low[i] && axis.high[i + k] < axis.low[i] + static_cast<int>(group);
        }
    }
    return compact;
}

// Outputs i in [0, count) at the source coordinate point(i), which is monotonic in i.
template <typename Point>
Axis make_axis(std::size_t length, std::size_t count, const Point& point) {
    const auto inside = [&](std::size_t i) {
        const double at = point(i);
        return at >= 0.0 && at <= static_cast<double>(length);
    };
    Axis axis;
    while (axis.begin < count && !inside(axis.begin)) {
        ++axis.begin;
    }
    axis.end = count;
    while (axis.end > axis.begin && !inside(axis.end - 1)) {
        --axis.end;
    }
    const std::size_t padded = round_up(axis.count(), kLanes);
    axis.low.resize(padded);
    axis.high.resize(padded);
    axis.fraction.resize(padded);
    for (std::size_t i = 0; i < padded; ++i) {
        const Tap tap = tap_at(point(std::min(axis.begin + i, axis.end - 1)), static_cast<int>(length));
        axis.low[i] = tap.low;
        axis.high[i] = tap.high;
        axis.fraction[i] = tap.fraction;
    }
    axis.compact = is_compact(axis, kLanes / 2) && is_compact(axis, kLanes);
    return axis;
}

// The last two source rows that were interpolated horizontally.
class WideRows {
 public:
    WideRows(const HotLoops& loops, const float* map, std::size_t width, const Axis& columns)
        : loops_(loops),
          map_(map),
          width_(width),
          columns_(columns),
          scratch_(round_up(width + kLanes, kLanes) + 2 * columns.padded()),
          source_(scratch_.take(width + kLanes)),
          rows_{scratch_.take(columns.padded()), scratch_.take(columns.padded())} {
        std::fill_n(source_ + width, kLanes, 0.0F);
    }

    const float* at(int row) {
        for (std::size_t slot = 0; slot < rows_.size(); ++slot) {
            if (held_[slot] == row) {
                newest_ = slot;
                return rows_[slot];
            }
        }
        newest_ = 1 - newest_;
        held_[newest_] = row;
        std::copy_n(map_ + static_cast<std::size_t>(row) * width_, width_, source_);
        loops_.resample_row(source_, columns_.taps(), rows_[newest_]);
        return rows_[newest_];
    }

 private:
    const HotLoops& loops_;
    const float* map_;
    std::size_t width_;
    const Axis& columns_;
    Scratch scratch_;
    float* source_;
    std::array<float*, 2> rows_;
    std::array<int, 2> held_{-1, -1};
    std::size_t newest_ = 0;
};

void resample(const MapStack& maps, const Axis& rows, const Axis& columns, std::size_t height, std::size_t width,
              std::span<float> output, ThreadPool& pool) {
    const HotLoops& loops = hot_loops();
    const std::size_t bands = (height - 1) / kRowsPerTask + 1;
    pool.run(maps.count * bands, output.size(), [&](std::size_t task) {
        const std::size_t first = task % bands * kRowsPerTask;
        const std::size_t last = std::min(first + kRowsPerTask, height);
        float* const map = output.data() + task / bands * height * width;
        WideRows wide(loops, maps.map(task / bands), maps.width, columns);
        for (std::size_t row = first; row < last; ++row) {
            float* const out = map + row * width;
            if (row < rows.begin || row >= rows.end || columns.count() == 0) {
                std::fill_n(out, width, 0.0F);
                continue;
            }
            const std::size_t i = row - rows.begin;
            const float* const upper = wide.at(rows.low[i]);
            const float* const lower = wide.at(rows.high[i]);
            std::fill_n(out, columns.begin, 0.0F);
            loops.blend_row({upper, lower, rows.fraction[i]}, columns.count(), out + columns.begin);
            std::fill(out + columns.end, out + width, 0.0F);
        }
    });
}

// A coordinate of the source as a function of an output pixel's centre.
struct Coordinate {
    double per_column;
    double per_row;
    double offset;

    [[nodiscard]] double at(std::size_t column, std::size_t row) const {
        return per_column * (static_cast<double>(column) + 0.5) + per_row * (static_cast<double>(row) + 0.5) + offset;
    }
};

void check_output(const MapStack& maps, std::size_t height, std::size_t width, std::span<float> output) {
    check(maps);
    if (std::min(height, width) == 0 || std::max(height, width) > kLongestAxis ||
        output.size() != maps.count * height * width) {
        throw std::invalid_argument("the output has an empty axis, one beyond 2^24, or not its shape's size");
    }
}

}  // namespace

Axis resized_axis(std::size_t length, std::size_t count) {
    return make_axis(length, count, [=](std::size_t i) {
        return resized_point(static_cast<int>(i), static_cast<int>(count), static_cast<int>(length));
    });
}

void check(const MapStack& maps) {
    if (maps.count == 0 || std::min(maps.height, maps.width) == 0 || std::max(maps.height, maps.width) > kLongestAxis ||
        maps.values.size() != maps.count * maps.size()) {
        throw std::invalid_argument("maps have an empty axis, one beyond 2^24, or not their shape's size");
    }
}

void resize(const MapStack& maps, std::size_t height, std::size_t width, std::span<float> output, ThreadPool& pool) {
    check_output(maps, height, width, output);
    resample(maps, resized_axis(maps.height, height), resized_axis(maps.width, width), height, width, output, pool);
}

void warp_affine(const MapStack& maps, std::span<const float> matrix, std::size_t height, std::size_t width,
                 std::span<float> output, ThreadPool& pool) {
    check_output(maps, height, width, output);
    if (matrix.size() != 6) {
        throw std::invalid_argument("the matrix does not have 2 x 3 elements");
    }
    const Coordinate x{matrix[0], matrix[1], matrix[2]};
    const Coordinate y{matrix[3], matrix[4], matrix[5]};
    if (x.per_row == 0.0 && y.per_column == 0.0) {
        const Axis columns = make_axis(maps.width, width, [&](std::size_t column) { return x.at(column, 0); });
        const Axis rows = make_axis(maps.height, height, [&](std::size_t row) { return y.at(0, row); });
        return resample(maps, rows, columns, height, width, output, pool);
    }
    pool.run(maps.count * height, 8 * output.size(), [&](std::size_t task) {
        const float* const map = maps.map(task / height);
        const std::size_t row = task % height;
        for (std::size_t column = 0; column < width; ++column) {
            output[task * width + column] = sample_at(map, static_cast<int>(maps.height), static_cast<int>(maps.width),
                                                      x.at(column, row), y.at(column, row));
        }
    });
}

}  // namespace camrt
