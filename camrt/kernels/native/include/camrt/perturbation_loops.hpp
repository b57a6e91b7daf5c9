// The loops of imputation and map statistics, one table of them per instruction set.
#pragma once

#include <cstddef>

#include "camrt/types.hpp"

namespace camrt {

// A plane of numbers with zeros around it. Element (r, c) is at pointer + r * stride + c; rows -1 and `height`, column
// -1 and the columns from `width` to `stride` are zero.
struct Grid {
    std::size_t height;
    std::size_t width;
    std::size_t stride;  // a multiple of kLanes, above width
};

// Of Jacobi smoothing. Since A is at most the diagonal matrix of its absolute row sums, no smoothing step diverges.
constexpr float kDamping = 0.9F;

// The system of imputation, times 12. A x at a missing pixel i = diagonal_i x_i - sum of the missing neighbours'
// values, 2 beside and 1 diagonally; 0 at a known pixel. The diagonal counts all neighbours inside the image: it
// depends on the column and on how many rows there are above and below (0, 1 or 2), so one row of it for each is
// enough.
struct FinestLevel {
    Grid grid;
    const float* mask;  // 1 = missing
    const float* diagonal[3];
    const float* inverse[3];  // kDamping / diagonal, 0 where there is no neighbour
};

// A symmetric operator on 3 x 3 neighbourhoods: A x at i = diagonal_i x_i - sum of coupling * neighbour.
struct StencilLevel {
    Grid grid;
    float* diagonal;
    float* inverse;     // a step that smoothes: at most kDamping / diagonal and 2 kDamping / absolute row sum
    float* east;        // coupling of (r, c) and (r, c + 1)
    float* south;       // of (r, c) and (r + 1, c)
    float* south_east;  // of (r, c) and (r + 1, c + 1)
    float* south_west;  // of (r, c) and (r + 1, c - 1)
};

constexpr std::size_t kWorkRows = 31;

struct Correction {
    double energy;  // scalar product with the residual
    float largest;  // largest absolute value
};

struct Moments {
    double first_squares;
    double second_squares;
    double products;
};

struct PerturbationLoops {
    // ---- Multigrid. Planes are those of Grid; all of them keep their zeros. ----

    // The Galerkin operator on every second row and column, with linear interpolation; a grid of one element is
    // smoothed exactly. `work` has room for kWorkRows rows of the finer grid, each kLanes longer than the stride.
    void (*coarsen_finest)(const FinestLevel& fine, const StencilLevel& coarse, float* work);
    void (*coarsen)(const StencilLevel& fine, const StencilLevel& coarse, float* work);
    // product = A x; returns the scalar product of both.
    double (*apply)(const FinestLevel& level, const float* x, float* product);
    // output = inverse * right.
    void (*start_finest)(const FinestLevel& level, const float* right, float* output);
    void (*start)(const StencilLevel& level, const float* right, float* output);
    // output = the residual right - A x, restricted to the coarser grid. `work` as in coarsen.
    void (*restrict_finest)(const FinestLevel& level, const float* right, const float* x, const Grid& coarse,
                            float* output, float* work);
    void (*restrict)(const StencilLevel& level, const float* right, const float* x, const Grid& coarse, float* output,
                     float* work);
    // x += the correction, interpolated from the coarser grid; on the finest grid at missing pixels only. `work` as in
    // coarsen.
    void (*correct_finest)(const FinestLevel& level, const Grid& coarse, const float* correction, float* x,
                           float* work);
    void (*correct)(const StencilLevel& level, const Grid& coarse, const float* correction, float* x, float* work);
    // output = x + inverse * (right - A x).
    Correction (*smooth_finest)(const FinestLevel& level, const float* right, const float* x, float* output);
    void (*smooth)(const StencilLevel& level, const float* right, const float* x, float* output);

    // ---- Conjugate gradients, over `count` elements, a multiple of kLanes ----

    // solution += step * direction; residual -= step * product.
    void (*advance)(std::size_t count, float step, const float* direction, const float* product, float* solution,
                    float* residual);
    // direction = correction + growth * direction.
    void (*turn)(std::size_t count, float growth, const float* correction, float* direction);

    // ---- Removal ----

    // keep[i] = 1 where map[i] (or 1 - map[i], if `mirrored`) is below the limit, else 0.
    void (*keep_below)(std::size_t count, const float* map, bool mirrored, float limit, unsigned char* keep);
    // missing[i] = 1 where keep[i] is 0, else 0; returns how many are kept.
    std::size_t (*mark_missing)(std::size_t count, const unsigned char* keep, float* missing);
    // The sum of the values that are not missing.
    double (*known_total)(std::size_t count, const float* missing, const float* values);
    // output[i] = (shift - values[i]) * scale in double precision; 0 where it is missing.
    void (*negate_known)(std::size_t count, const float* missing, const float* values, double shift, double scale,
                         float* output);
    // output[i] = values[i], or solved[i] * scale + shift in double precision where it is missing.
    void (*fill_missing)(std::size_t count, const float* missing, const float* values, const float* solved,
                         double scale, double shift, float* output);
    // output[i] += noise[i] where keep[i] is 0.
    void (*add_noise)(std::size_t count, const unsigned char* keep, const float* noise, float* output);

    // ---- Images and maps ----

    // output[i] = image[i] * map[i].
    void (*multiply)(std::size_t count, const float* image, const float* map, float* output);
    double (*total)(std::size_t count, const float* values);
    double (*absolute_total)(std::size_t count, const float* values);
    // Sums over (first - first_mean) and (second - second_mean).
    Moments (*centered_moments)(std::size_t count, const float* first, double first_mean, const float* second,
                                double second_mean);
};

namespace simd {
namespace baseline {
extern const PerturbationLoops perturbation_loops;
}
#ifdef CAMRT_X86
namespace avx2 {
extern const PerturbationLoops perturbation_loops;
}
namespace avx512 {
extern const PerturbationLoops perturbation_loops;
}
#endif
}  // namespace simd

}  // namespace camrt
