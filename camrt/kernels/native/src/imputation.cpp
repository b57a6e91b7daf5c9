#include "camrt/imputation.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "camrt/cpu.hpp"
#include "camrt/scratch.hpp"

namespace camrt {
namespace {

constexpr int kMostIterations = 200;
// The largest correction at which the solution is done, in standard deviations of the channel.
constexpr float kTolerance = 3e-4F;
constexpr std::size_t kCoefficientPlanes = 6;

Grid grid_of(std::size_t height, std::size_t width) { return {height, width, round_up(width + 1, kLanes)}; }

std::size_t plane_floats(const Grid& grid) { return (grid.height + 2) * grid.stride + 2 * kLanes; }

// The planes of one level below the finest.
struct Coarse {
    StencilLevel level;
    float* right;
    float* start;
    float* solution;
};

std::vector<Grid> grids_of(std::size_t height, std::size_t width) {
    if (height == 0 || width == 0) {
        throw std::invalid_argument("an image has an empty axis");
    }
    std::vector<Grid> grids{grid_of(height, width)};
    while (height > 1 || width > 1) {
        height = (height + 1) / 2;
        width = (width + 1) / 2;
        grids.push_back(grid_of(height, width));
    }
    return grids;
}

// The neighbours inside the image of each column, weighted, with `vertical` rows above and below.
void fill_diagonal(const Grid& grid, std::size_t vertical, float* diagonal, float* inverse) {
    for (std::size_t column = 0; column < grid.width; ++column) {
        const float horizontal = (column > 0 ? 1.0F : 0.0F) + (column + 1 < grid.width ? 1.0F : 0.0F);
        const auto rows = static_cast<float>(vertical);
        diagonal[column] = 2.0F * (horizontal + rows) + horizontal * rows;
        inverse[column] = diagonal[column] > 0.0F ? kDamping / diagonal[column] : 0.0F;
    }
}

}  // namespace

struct Imputer::Workspace {
    Workspace(std::size_t height, std::size_t width)
        : grids(grids_of(height, width)), scratch(scratch_floats(grids)), loops(perturbation_loops()) {
        const Grid& grid = grids.front();
        mask = plane(grid);
        finest = {grid, mask, {}, {}};
        for (std::size_t vertical = 0; vertical < 3; ++vertical) {
            float* const diagonal = zeros(grid.stride);
            float* const inverse = zeros(grid.stride);
            fill_diagonal(grid, vertical, diagonal, inverse);
            finest.diagonal[vertical] = diagonal;
            finest.inverse[vertical] = inverse;
        }
        for (float** vector : {&solution, &residual, &direction, &product, &start, &correction}) {
            *vector = plane(grid);
        }
        for (std::size_t l = 1; l < grids.size(); ++l) {
            const Grid& g = grids[l];
            const StencilLevel level{g, plane(g), plane(g), plane(g), plane(g), plane(g), plane(g)};
            coarse.push_back({level, plane(g), plane(g), plane(g)});
        }
        work = zeros(work_floats(grid));
    }

    static std::size_t work_floats(const Grid& grid) { return kWorkRows * (grid.stride + kLanes) + kLanes; }

    static std::size_t scratch_floats(const std::vector<Grid>& grids) {
        const Grid& finest = grids.front();
        std::size_t floats = 7 * round_up(plane_floats(finest), kLanes) + 6 * finest.stride + work_floats(finest);
        for (std::size_t l = 1; l < grids.size(); ++l) {
            floats += (kCoefficientPlanes + 3) * round_up(plane_floats(grids[l]), kLanes);
        }
        return round_up(floats, kLanes);
    }

    float* zeros(std::size_t count) {
        float* const floats = scratch.take(count);
        std::fill_n(floats, count, 0.0F);
        return floats;
    }

    // Element (0, 0) of a plane of zeros.
    float* plane(const Grid& grid) { return zeros(plane_floats(grid)) + grid.stride + kLanes; }

    // The correction of a level from its residual: one V-cycle from there down.
    const float* cycle(std::size_t l) {
        Coarse& here = coarse[l];
        loops.start(here.level, here.right, here.start);
        if (l + 1 == coarse.size()) {
            return here.start;
        }
        Coarse& below = coarse[l + 1];
        loops.restrict(here.level, here.right, here.start, below.level.grid, below.right, work);
        loops.correct(here.level, below.level.grid, cycle(l + 1), here.start, work);
        loops.smooth(here.level, here.right, here.start, here.solution);
        return here.solution;
    }

    // correction = about A^-1 residual, by a symmetric positive definite operator.
    Correction precondition() {
        loops.start_finest(finest, residual, start);
        if (!coarse.empty()) {
            Coarse& below = coarse.front();
            loops.restrict_finest(finest, residual, start, below.level.grid, below.right, work);
            loops.correct_finest(finest, below.level.grid, cycle(0), start, work);
        }
        return loops.smooth_finest(finest, residual, start, correction);
    }

    std::vector<Grid> grids;
    Scratch scratch;
    const PerturbationLoops& loops;
    FinestLevel finest{};
    std::vector<Coarse> coarse;
    float* mask = nullptr;
    float* solution = nullptr;
    float* residual = nullptr;
    float* direction = nullptr;
    float* product = nullptr;
    float* start = nullptr;
    float* correction = nullptr;
    float* work = nullptr;
    std::size_t known = 0;

    [[nodiscard]] std::size_t floats() const { return finest.grid.height * finest.grid.stride; }
    [[nodiscard]] std::size_t at(std::size_t row) const { return row * finest.grid.stride; }

    void set_mask(const unsigned char* keep);
    [[nodiscard]] double known_mean(const float* image) const;
    void set_right(const float* image, double shift, double scale);
    void solve();
};

void Imputer::Workspace::set_mask(const unsigned char* keep) {
    const Grid& grid = finest.grid;
    known = 0;
    for (std::size_t row = 0; row < grid.height; ++row) {
        known += loops.mark_missing(grid.width, keep + row * grid.width, mask + at(row));
    }
    if (known == 0 || known == grid.height * grid.width || coarse.empty()) {
        return;
    }
    loops.coarsen_finest(finest, coarse.front().level, work);
    for (std::size_t l = 1; l < coarse.size(); ++l) {
        loops.coarsen(coarse[l - 1].level, coarse[l].level, work);
    }
}

double Imputer::Workspace::known_mean(const float* image) const {
    const Grid& grid = finest.grid;
    double sum = 0.0;
    for (std::size_t row = 0; row < grid.height; ++row) {
        sum += loops.known_total(grid.width, mask + at(row), image + row * grid.width);
    }
    return sum / static_cast<double>(known);
}

// residual = what the known pixels, as (value - shift) * scale, send to their missing neighbours; solution = 0.
void Imputer::Workspace::set_right(const float* image, double shift, double scale) {
    const Grid& grid = finest.grid;
    float* const negated = direction;
    for (std::size_t row = 0; row < grid.height; ++row) {
        loops.negate_known(grid.width, mask + at(row), image + row * grid.width, shift, scale, negated + at(row));
    }
    loops.apply(finest, negated, residual);
    std::fill_n(solution, floats(), 0.0F);
}

void Imputer::Workspace::solve() {
    double previous = 0.0;
    for (int iteration = 0; iteration < kMostIterations; ++iteration) {
        const Correction found = precondition();
        if (found.largest <= kTolerance) {
            // The cycle is nearly the inverse: what it found is nearly all that is missing.
            loops.turn(floats(), 1.0F, correction, solution);
            return;
        }
        loops.turn(floats(), iteration == 0 ? 0.0F : static_cast<float>(found.energy / previous), correction,
                   direction);
        previous = found.energy;
        const double curvature = loops.apply(finest, direction, product);
        loops.advance(floats(), static_cast<float>(found.energy / curvature), direction, product, solution, residual);
    }
    throw std::runtime_error("imputation did not converge within " + std::to_string(kMostIterations) + " iterations");
}

Imputer::Imputer(std::size_t height, std::size_t width) : workspace_(std::make_unique<Workspace>(height, width)) {}
Imputer::~Imputer() = default;

std::size_t Imputer::set_mask(const unsigned char* keep) {
    workspace_->set_mask(keep);
    return workspace_->known;
}

void Imputer::fill(const float* image, double deviation, float* output) {
    Workspace& space = *workspace_;
    const Grid& grid = space.finest.grid;
    if (space.known == grid.height * grid.width) {
        std::copy_n(image, space.known, output);
        return;
    }
    const double shift = space.known_mean(image);
    // In deviations from the mean, images of every scale are alike, and little is lost to single precision.
    space.set_right(image, shift, deviation > 0.0 ? 1.0 / deviation : 0.0);
    space.solve();
    for (std::size_t row = 0; row < grid.height; ++row) {
        const std::size_t first = row * grid.width;
        space.loops.fill_missing(grid.width, space.mask + space.at(row), image + first, space.solution + space.at(row),
                                 deviation, shift, output + first);
    }
}

}  // namespace camrt
