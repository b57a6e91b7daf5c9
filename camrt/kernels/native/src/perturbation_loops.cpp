// Compiled once per instruction set, with CAMRT_VARIANT naming the build. See simd.hpp for what may be used here.
#include "camrt/perturbation_loops.hpp"

#include "simd.hpp"

namespace {

using camrt::Correction;
using camrt::FinestLevel;
using camrt::Grid;
using camrt::Moments;
using camrt::StencilLevel;

inline Index rows_of(const Grid& grid) { return static_cast<Index>(grid.height); }
inline Index stride_of(const Grid& grid) { return static_cast<Index>(grid.stride); }

inline Vector absolute(Vector x) { return x < 0.0F ? -x : x; }

// kLanes partial sums in single precision, for the length of one row.
struct RowSum {
    Vector part[kParts] = {};

    [[nodiscard]] float total() const {
        float lanes[kLaneCount];
        __builtin_memcpy(lanes, part, sizeof lanes);
        for (int count = kLaneCount / 2; count > 0; count /= 2) {
            for (int i = 0; i < count; ++i) {
                lanes[i] += lanes[i + count];
            }
        }
        return lanes[0];
    }
};

// The largest of the values that were added; the order does not matter.
struct Largest {
    Vector lanes = {};

    void add(Vector values) { lanes = larger(values, lanes); }

    [[nodiscard]] float total() const {
        float result = lanes[0];
        for (int k = 1; k < kWidth; ++k) {
            result = lanes[k] > result ? lanes[k] : result;
        }
        return result;
    }
};

// ---- the operator, at kWidth elements from column i of a row on ----

// kWidth elements of a row with those above and below.
struct Columns {
    Vector middle = {};
    Vector ends = {};      // above + below
    Vector weighted = {};  // ends + 2 middle

    Columns() = default;
    Columns(const float* at, Index stride)
        : middle(load<Vector>(at)),
          ends(load<Vector>(at - stride) + load<Vector>(at + stride)),
          weighted(ends + (middle + middle)) {}
};

struct FinestRow {
    const float* mask;
    const float* diagonal;
    const float* inverse;
    Index stride;

    FinestRow(const FinestLevel& level, Index row)
        : mask(level.mask + row * stride_of(level.grid)),
          diagonal(level.diagonal[kind(level, row)]),
          inverse(level.inverse[kind(level, row)]),
          stride(stride_of(level.grid)) {}

    static int kind(const FinestLevel& level, Index row) {
        return (row > 0 ? 1 : 0) + (row + 1 < rows_of(level.grid) ? 1 : 0);
    }

    [[nodiscard]] Vector product(const Columns& left, const Columns& here, const Columns& right, Index i) const {
        const Vector sides =
            from_pair<kWidth - 1>(left.weighted, here.weighted) + from_pair<1>(here.weighted, right.weighted);
        const Vector neighbors = sides + (here.ends + here.ends);
        return load<Vector>(mask + i) * (load<Vector>(diagonal + i) * here.middle - neighbors);
    }

    // See StencilRow. Every element of x is loaded once and moves from register to register: a load that crosses cache
    // lines costs two.
    template <typename Body>
    void for_each_product(const float* x, const Body& body) const {
        Columns left{};
        Columns here(x, stride);
        for (Index i = 0; i < stride; i += kLaneCount) {
            for (int part = 0; part < kParts; ++part) {
                const Index j = i + part * kWidth;
                const Columns right = j + kWidth < stride ? Columns(x + j + kWidth, stride) : Columns{};
                body(j, part, product(left, here, right, j));
                left = here;
                here = right;
            }
        }
    }

    [[nodiscard]] Vector scaled(Vector residual, Index i) const { return load<Vector>(inverse + i) * residual; }
    [[nodiscard]] Vector allowed(Vector correction, Index i) const { return load<Vector>(mask + i) * correction; }
};

struct StencilRow {
    const float* diagonal;
    const float* inverse;
    const float* east;
    const float* south;
    const float* south_east;
    const float* south_west;
    Index stride;

    StencilRow(const StencilLevel& level, Index row)
        : diagonal(level.diagonal + row * stride_of(level.grid)),
          inverse(level.inverse + row * stride_of(level.grid)),
          east(level.east + row * stride_of(level.grid)),
          south(level.south + row * stride_of(level.grid)),
          south_east(level.south_east + row * stride_of(level.grid)),
          south_west(level.south_west + row * stride_of(level.grid)),
          stride(stride_of(level.grid)) {}

    // term(address of the coupling, address of the neighbour) for each of the 8 neighbours, added up.
    template <typename Term>
    [[nodiscard]] Vector sum(const float* x, Index i, const Term& term) const {
        const float* const at = x + i;
        const Vector sides = (term(east + i, at + 1) + term(east + i - 1, at - 1)) +
                             (term(south + i, at + stride) + term(south + i - stride, at - stride));
        const Vector corners =
            (term(south_east + i, at + stride + 1) + term(south_east + i - stride - 1, at - stride - 1)) +
            (term(south_west + i, at + stride - 1) + term(south_west + i - stride + 1, at - stride + 1));
        return sides + corners;
    }

    [[nodiscard]] Vector product(const float* x, Index i) const {
        const Vector neighbors = sum(x, i, [](const float* coupling, const float* neighbor) {
            return load<Vector>(coupling) * load<Vector>(neighbor);
        });
        return load<Vector>(diagonal + i) * load<Vector>(x + i) - neighbors;
    }

    // Calls body(i, i / kWidth % kParts, A x of the kWidth elements from column i on) along a row that starts at x.
    template <typename Body>
    void for_each_product(const float* x, const Body& body) const {
        for (Index i = 0; i < stride; i += kLaneCount) {
            for (int part = 0; part < kParts; ++part) {
                body(i + part * kWidth, part, product(x, i + part * kWidth));
            }
        }
    }

    [[nodiscard]] Vector absolute_row_sum(Index i) const {
        const Vector neighbors =
            sum(diagonal, i, [](const float* coupling, const float*) { return absolute(load<Vector>(coupling)); });
        return load<Vector>(diagonal + i) + neighbors;
    }

    [[nodiscard]] Vector scaled(Vector residual, Index i) const { return load<Vector>(inverse + i) * residual; }
    [[nodiscard]] Vector allowed(Vector correction, Index) const { return correction; }
};

template <typename Level>
struct RowOf;
template <>
struct RowOf<FinestLevel> {
    using Type = FinestRow;
};
template <>
struct RowOf<StencilLevel> {
    using Type = StencilRow;
};

// ---- smoothing and residuals ----

template <typename Level>
void start(const Level& level, const float* right, float* output) {
    const Index stride = stride_of(level.grid);
    for (Index row = 0; row < rows_of(level.grid); ++row) {
        const typename RowOf<Level>::Type at(level, row);
        for (Index i = 0; i < stride; i += kWidth) {
            store(output + row * stride + i, at.scaled(load<Vector>(right + row * stride + i), i));
        }
    }
}

void smooth(const StencilLevel& level, const float* right, const float* x, float* output) {
    const Index stride = stride_of(level.grid);
    for (Index row = 0; row < rows_of(level.grid); ++row) {
        const StencilRow at(level, row);
        const Index k = row * stride;
        at.for_each_product(x + k, [&](Index i, int, Vector product) {
            store(output + k + i, load<Vector>(x + k + i) + at.scaled(load<Vector>(right + k + i) - product, i));
        });
    }
}

Correction smooth_finest(const FinestLevel& level, const float* right, const float* x, float* output) {
    const Index stride = stride_of(level.grid);
    double energy = 0.0;
    Largest largest;
    for (Index row = 0; row < rows_of(level.grid); ++row) {
        const FinestRow at(level, row);
        const Index k = row * stride;
        RowSum sum;
        at.for_each_product(x + k, [&](Index i, int part, Vector product) {
            const Vector wanted = load<Vector>(right + k + i);
            const Vector value = load<Vector>(x + k + i) + at.scaled(wanted - product, i);
            store(output + k + i, value);
            sum.part[part] += wanted * value;
            largest.add(absolute(value));
        });
        energy += static_cast<double>(sum.total());
    }
    return {energy, largest.total()};
}

double apply(const FinestLevel& level, const float* x, float* product) {
    const Index stride = stride_of(level.grid);
    double energy = 0.0;
    for (Index row = 0; row < rows_of(level.grid); ++row) {
        const FinestRow at(level, row);
        const Index k = row * stride;
        RowSum sum;
        at.for_each_product(x + k, [&](Index i, int part, Vector value) {
            store(product + k + i, value);
            sum.part[part] += load<Vector>(x + k + i) * value;
        });
        energy += static_cast<double>(sum.total());
    }
    return energy;
}

// ---- between the grids ----

// Fine element 2 c belongs to coarse element c; 2 c + 1 belongs half to c and half to c + 1, or wholly to c if c is the
// last one.
inline float share_of_next(std::size_t coarse, std::size_t count) { return coarse + 1 < count ? 0.5F : 1.0F; }

// even[c] = values[2 c], odd[c] = values[2 c + 1] for c < count.
inline void split(const float* __restrict values, Index count, float* __restrict even, float* __restrict odd) {
    for (Index c = 0; c < count; ++c) {
        even[c] = values[2 * c];
        odd[c] = values[2 * c + 1];
    }
}

// A row for working: kLanes zeros before it, so that column -1 can be read.
inline float* work_row(float* work, Index number, Index stride) {
    return work + number * (stride + kLaneCount) + kLaneCount;
}

// Zeros beyond the width of a row.
inline void clear_padding(float* row, const Grid& grid) {
    for (std::size_t i = grid.width; i < grid.stride; ++i) {
        row[i] = 0.0F;
    }
}

template <typename Level>
void restrict_residual(const Level& level, const float* right, const float* x, const Grid& coarse, float* output,
                       float* work) {
    const Index stride = stride_of(level.grid);
    float* sum = work_row(work, 0, stride);
    float* following = work_row(work, 1, stride);
    float* const even = work_row(work, 2, stride);
    float* const odd = work_row(work, 3, stride);
    odd[-1] = 0.0F;
    for (Index i = 0; i < stride; i += kWidth) {
        store(sum + i, Vector{});
    }
    const auto last = static_cast<Index>(coarse.width) - 1;
    for (Index row = 0; row < rows_of(coarse); ++row) {
        const typename RowOf<Level>::Type own(level, 2 * row);
        const Index k = 2 * row * stride;
        own.for_each_product(x + k, [&](Index i, int, Vector product) {
            store(sum + i, load<Vector>(sum + i) + (load<Vector>(right + k + i) - product));
        });
        if (2 * row + 1 < rows_of(level.grid)) {
            const typename RowOf<Level>::Type shared(level, 2 * row + 1);
            const float share = share_of_next(static_cast<std::size_t>(row), coarse.height);
            shared.for_each_product(x + k + stride, [&](Index i, int, Vector product) {
                const Vector residual = load<Vector>(right + k + stride + i) - product;
                store(sum + i, load<Vector>(sum + i) + share * residual);
                store(following + i, 0.5F * residual);
            });
        }
        split(sum, stride / 2, even, odd);
        float* const to = output + row * stride_of(coarse);
        for (Index c = 0; c < last; ++c) {
            to[c] = even[c] + 0.5F * (odd[c - 1] + odd[c]);
        }
        to[last] = even[last] + (0.5F * odd[last - 1] + odd[last]);
        clear_padding(to, coarse);
        float* const free = sum;
        sum = following;
        following = free;
    }
}

// One coarse row, interpolated to `width` fine columns.
inline void widen(const float* __restrict row, const Grid& coarse, std::size_t width, float* __restrict output) {
    const auto last = static_cast<Index>(coarse.width) - 1;
    for (Index c = 0; c < last; ++c) {
        output[2 * c] = row[c];
        output[2 * c + 1] = 0.5F * (row[c] + row[c + 1]);
    }
    output[2 * last] = row[last];
    if (static_cast<Index>(width) > 2 * last + 1) {
        output[2 * last + 1] = row[last];
    }
}

template <typename Level>
void correct(const Level& level, const Grid& coarse, const float* correction, float* x, float* work) {
    const Index stride = stride_of(level.grid);
    float* upper = work_row(work, 0, stride);
    float* lower = work_row(work, 1, stride);
    for (Index i = 0; i < stride; i += kWidth) {
        store(upper + i, Vector{});
        store(lower + i, Vector{});
    }
    widen(correction, coarse, level.grid.width, upper);
    for (Index row = 0; row < rows_of(coarse); ++row) {
        const bool last = row + 1 == rows_of(coarse);
        if (!last) {
            widen(correction + (row + 1) * stride_of(coarse), coarse, level.grid.width, lower);
        }
        const float* const between = last ? upper : lower;
        for (Index fine = 2 * row; fine < 2 * row + 2 && fine < rows_of(level.grid); ++fine) {
            const typename RowOf<Level>::Type at(level, fine);
            float* const to = x + fine * stride;
            const float* const other = fine == 2 * row ? upper : between;
            for (Index i = 0; i < stride; i += kWidth) {
                const Vector value = 0.5F * (load<Vector>(upper + i) + load<Vector>(other + i));
                store(to + i, load<Vector>(to + i) + at.allowed(value, i));
            }
        }
        float* const free = upper;
        upper = lower;
        lower = free;
    }
}

// ---- Galerkin operators ----

// The coefficients of one row.
struct Coefficients {
    float* diagonal;
    float* east;
    float* south;
    float* south_east;
    float* south_west;

    // Five work rows, the first of which is `number`.
    Coefficients(float* work, Index number, Index stride)
        : diagonal(work_row(work, number, stride)),
          east(work_row(work, number + 1, stride)),
          south(work_row(work, number + 2, stride)),
          south_east(work_row(work, number + 3, stride)),
          south_west(work_row(work, number + 4, stride)) {}

    Coefficients(const StencilLevel& level, Index row)
        : diagonal(level.diagonal + row * stride_of(level.grid)),
          east(level.east + row * stride_of(level.grid)),
          south(level.south + row * stride_of(level.grid)),
          south_east(level.south_east + row * stride_of(level.grid)),
          south_west(level.south_west + row * stride_of(level.grid)) {}

    void clear(Index count) const {
        float* const rows[] = {diagonal, east, south, south_east, south_west};
        for (float* const row : rows) {
            for (Index i = -kLaneCount; i < count; i += kWidth) {
                store(row + i, Vector{});
            }
        }
    }
};

// The coefficients of row `row`, which may lie outside: then all are zero.
void read_row(const FinestLevel& level, Index row, const Coefficients& to) {
    const Index stride = stride_of(level.grid);
    if (row < 0 || row >= rows_of(level.grid)) {
        return to.clear(stride);
    }
    const FinestRow at(level, row);
    const float* const below = at.mask + stride;
    for (Index i = 0; i < stride; i += kWidth) {
        const Vector missing = load<Vector>(at.mask + i);
        store(to.diagonal + i, missing * load<Vector>(at.diagonal + i));
        store(to.east + i, 2.0F * missing * load<Vector>(at.mask + i + 1));
        store(to.south + i, 2.0F * missing * load<Vector>(below + i));
        store(to.south_east + i, missing * load<Vector>(below + i + 1));
        store(to.south_west + i, missing * load<Vector>(below + i - 1));
    }
}

void read_row(const StencilLevel& level, Index row, const Coefficients& to) {
    const Index stride = stride_of(level.grid);
    if (row < 0 || row >= rows_of(level.grid)) {
        return to.clear(stride);
    }
    const Coefficients from(level, row);
    for (Index i = 0; i < stride; i += kWidth) {
        store(to.diagonal + i, load<Vector>(from.diagonal + i));
        store(to.east + i, load<Vector>(from.east + i));
        store(to.south + i, load<Vector>(from.south + i));
        store(to.south_east + i, load<Vector>(from.south_east + i));
        store(to.south_west + i, load<Vector>(from.south_west + i));
    }
}

// Rows 2 R - 1, 2 R and 2 R + 1 to row R. `next` is what row 2 R + 1 has to do with R.
void merge_rows(const Coefficients& above, const Coefficients& here, const Coefficients& below, float next,
                Index stride, const Coefficients& to) {
    const float square = next * next;
    for (Index i = 0; i < stride; i += kWidth) {
        const auto at = [i](const float* row, Index shift = 0) { return load<Vector>(row + i + shift); };
        store(to.diagonal + i, at(here.diagonal) + (0.25F * at(above.diagonal) + square * at(below.diagonal)) -
                                   (at(above.south) + 2.0F * next * at(here.south)));
        store(to.east + i, at(here.east) + (0.25F * at(above.east) + square * at(below.east)) +
                               (0.5F * (at(above.south_east) + at(above.south_west, 1)) +
                                next * (at(here.south_east) + at(here.south_west, 1))));
        store(to.south + i, 0.5F * (at(here.south) + at(below.south)) - 0.25F * at(below.diagonal));
        store(to.south_east + i, 0.5F * (at(here.south_east) + at(below.south_east)) + 0.25F * at(below.east));
        store(to.south_west + i, 0.5F * (at(here.south_west) + at(below.south_west)) + 0.25F * at(below.east, -1));
    }
}

// Columns 2 C - 1, 2 C and 2 C + 1 to column C of a merged row that was split into even and odd columns.
void merge_columns(const Coefficients& even, const Coefficients& odd, const Grid& coarse, const Coefficients& to) {
    const auto last = static_cast<Index>(coarse.width) - 1;
    const auto column = [&](Index c, float next) {
        const float square = next * next;
        to.diagonal[c] = even.diagonal[c] + (0.25F * odd.diagonal[c - 1] + square * odd.diagonal[c]) -
                         (odd.east[c - 1] + 2.0F * next * even.east[c]);
        to.south[c] =
            even.south[c] + (0.25F * odd.south[c - 1] + square * odd.south[c]) +
            (0.5F * (odd.south_east[c - 1] + even.south_west[c]) + next * (even.south_east[c] + odd.south_west[c]));
        to.south_west[c] = 0.5F * (odd.south_west[c - 1] + even.south_west[c]) + 0.25F * odd.south[c - 1];
        to.east[c] = 0.5F * (even.east[c] + odd.east[c]) - 0.25F * odd.diagonal[c];
        to.south_east[c] = 0.5F * (even.south_east[c] + odd.south_east[c]) + 0.25F * odd.south[c];
    };
    for (Index c = 0; c < last; ++c) {
        column(c, 0.5F);
    }
    column(last, 1.0F);
    to.east[last] = to.south_east[last] = 0.0F;
}

void set_steps(const StencilLevel& level) {
    const bool single = level.grid.height == 1 && level.grid.width == 1;
    const float damping = single ? 1.0F : camrt::kDamping;
    const Index stride = stride_of(level.grid);
    for (Index row = 0; row < rows_of(level.grid); ++row) {
        const StencilRow at(level, row);
        for (Index i = 0; i < stride; i += kWidth) {
            const Vector diagonal = load<Vector>(at.diagonal + i);
            const Vector row_sum = 0.5F * at.absolute_row_sum(i);
            const Vector step = damping / larger(row_sum, diagonal);
            store(level.inverse + row * stride + i, diagonal > 0.0F ? step : Vector{});
        }
    }
}

template <typename Level>
void coarsen(const Level& fine, const StencilLevel& coarse, float* work) {
    const Index stride = stride_of(fine.grid);
    Coefficients above(work, 0, stride);
    Coefficients here(work, 5, stride);
    Coefficients below(work, 10, stride);
    const Coefficients merged(work, 15, stride);
    const Coefficients even(work, 20, stride);
    const Coefficients odd(work, 25, stride);
    const auto coarse_stride = stride_of(coarse.grid);
    merged.clear(stride);
    odd.clear(stride);
    read_row(fine, -1, above);
    below.clear(stride);
    here.clear(stride);
    for (Index row = 0; row < rows_of(coarse.grid); ++row) {
        read_row(fine, 2 * row, here);
        read_row(fine, 2 * row + 1, below);
        const float next = share_of_next(static_cast<std::size_t>(row), coarse.grid.height);
        merge_rows(above, here, below, next, stride, merged);
        split(merged.diagonal, stride / 2, even.diagonal, odd.diagonal);
        split(merged.east, stride / 2, even.east, odd.east);
        split(merged.south, stride / 2, even.south, odd.south);
        split(merged.south_east, stride / 2, even.south_east, odd.south_east);
        split(merged.south_west, stride / 2, even.south_west, odd.south_west);
        const Coefficients to(coarse, row);
        merge_columns(even, odd, coarse.grid, to);
        if (next == 1.0F) {
            for (Index i = 0; i < coarse_stride; ++i) {
                to.south[i] = to.south_east[i] = to.south_west[i] = 0.0F;
            }
        }
        float* const rows[] = {to.diagonal, to.east, to.south, to.south_east, to.south_west};
        for (float* const values : rows) {
            clear_padding(values, coarse.grid);
        }
        const Coefficients free = above;
        above = below;
        below = free;
    }
    set_steps(coarse);
}

// ---- conjugate gradients ----

void advance(std::size_t count, float step, const float* __restrict direction, const float* __restrict product,
             float* __restrict solution, float* __restrict residual) {
    for (std::size_t i = 0; i < count; ++i) {
        solution[i] += step * direction[i];
        residual[i] -= step * product[i];
    }
}

void turn(std::size_t count, float growth, const float* __restrict correction, float* __restrict direction) {
    for (std::size_t i = 0; i < count; ++i) {
        direction[i] = correction[i] + growth * direction[i];
    }
}

// ---- images and maps ----

void multiply(std::size_t count, const float* __restrict image, const float* __restrict map, float* __restrict output) {
    for (std::size_t i = 0; i < count; ++i) {
        output[i] = image[i] * map[i];
    }
}

// Calls body(kLanes elements of each array, how many of them count) over `count` elements; those beyond are zeros.
template <typename Body>
inline void for_each_pair(std::size_t count, const float* first, const float* second, const Body& body) {
    const auto length = static_cast<Index>(count);
    Index i = 0;
    for (; i + kLaneCount <= length; i += kLaneCount) {
        body(first + i, second + i, kLaneCount);
    }
    if (i < length) {
        float rest[2][kLaneCount] = {};
        for (Index k = 0; i + k < length; ++k) {
            rest[0][k] = first[i + k];
            rest[1][k] = second[i + k];
        }
        body(rest[0], rest[1], static_cast<int>(length - i));
    }
}

double total(std::size_t count, const float* values) {
    DoubleLanes sum;
    for_each_pair(count, values, values, [&](const float* lanes, const float*, int) { sum.add(load_lanes(lanes)); });
    return sum.total();
}

double absolute_total(std::size_t count, const float* values) {
    DoubleLanes sum;
    for_each_pair(count, values, values, [&](const float* at, const float*, int) {
        Lanes lanes = load_lanes(at);
        for (Vector& part : lanes.part) {
            part = absolute(part);
        }
        sum.add(lanes);
    });
    return sum.total();
}

Moments centered_moments(std::size_t count, const float* first, double first_mean, const float* second,
                         double second_mean) {
    double squares[3][kLaneCount] = {};
    for_each_pair(count, first, second, [&](const float* a, const float* b, int lanes) {
        for (int k = 0; k < lanes; ++k) {
            const double x = static_cast<double>(a[k]) - first_mean;
            const double y = static_cast<double>(b[k]) - second_mean;
            squares[0][k] += x * x;
            squares[1][k] += y * y;
            squares[2][k] += x * y;
        }
    });
    for (auto& lanes : squares) {
        for (int half = kLaneCount / 2; half > 0; half /= 2) {
            for (int k = 0; k < half; ++k) {
                lanes[k] += lanes[k + half];
            }
        }
    }
    return {squares[0][0], squares[1][0], squares[2][0]};
}

// ---- removal ----

void keep_below(std::size_t count, const float* __restrict map, bool mirrored, float limit,
                unsigned char* __restrict keep) {
    for (std::size_t i = 0; i < count; ++i) {
        const float relevance = mirrored ? 1.0F - map[i] : map[i];
        keep[i] = relevance < limit ? 1 : 0;
    }
}

std::size_t mark_missing(std::size_t count, const unsigned char* __restrict keep, float* __restrict missing) {
    std::size_t known = 0;
    for (std::size_t i = 0; i < count; ++i) {
        known += keep[i] != 0 ? 1U : 0U;
        missing[i] = keep[i] != 0 ? 0.0F : 1.0F;
    }
    return known;
}

double known_total(std::size_t count, const float* missing, const float* values) {
    DoubleLanes sum;
    for_each_pair(count, missing, values, [&](const float* mask, const float* at, int) {
        Lanes lanes = load_lanes(at);
        const Lanes left_out = load_lanes(mask);
        for (int k = 0; k < kParts; ++k) {
            lanes.part[k] = left_out.part[k] > 0.0F ? Vector{} : lanes.part[k];
        }
        sum.add(lanes);
    });
    return sum.total();
}

void negate_known(std::size_t count, const float* __restrict missing, const float* __restrict values, double shift,
                  double scale, float* __restrict output) {
    for (std::size_t i = 0; i < count; ++i) {
        const auto value = static_cast<float>((shift - static_cast<double>(values[i])) * scale);
        output[i] = missing[i] > 0.0F ? 0.0F : value;
    }
}

void fill_missing(std::size_t count, const float* __restrict missing, const float* __restrict values,
                  const float* __restrict solved, double scale, double shift, float* __restrict output) {
    for (std::size_t i = 0; i < count; ++i) {
        const auto value = static_cast<float>(static_cast<double>(solved[i]) * scale + shift);
        output[i] = missing[i] > 0.0F ? value : values[i];
    }
}

void add_noise(std::size_t count, const unsigned char* __restrict keep, const float* __restrict noise,
               float* __restrict output) {
    for (std::size_t i = 0; i < count; ++i) {
        output[i] = keep[i] != 0 ? output[i] : output[i] + noise[i];
    }
}

}  // namespace

namespace camrt::simd::CAMRT_VARIANT {

const PerturbationLoops perturbation_loops = {
    .coarsen_finest = coarsen<FinestLevel>,
    .coarsen = coarsen<StencilLevel>,
    .apply = apply,
    .start_finest = start<FinestLevel>,
    .start = start<StencilLevel>,
    .restrict_finest = restrict_residual<FinestLevel>,
    .restrict = restrict_residual<StencilLevel>,
    .correct_finest = correct<FinestLevel>,
    .correct = correct<StencilLevel>,
    .smooth_finest = smooth_finest,
    .smooth = smooth,
    .advance = advance,
    .turn = turn,
    .keep_below = keep_below,
    .mark_missing = mark_missing,
    .known_total = known_total,
    .negate_known = negate_known,
    .fill_missing = fill_missing,
    .add_noise = add_noise,
    .multiply = multiply,
    .total = total,
    .absolute_total = absolute_total,
    .centered_moments = centered_moments,
};

}  // namespace camrt::simd::CAMRT_VARIANT
