// Compiled once per instruction set, with CAMRT_VARIANT naming the build. See simd.hpp for what may be used here.
#include "camrt/hot_loops.hpp"

#include "camrt/math/interpolation.hpp"
#include "camrt/math/weights.hpp"
#include "simd.hpp"

namespace {

using camrt::blend;
using camrt::BlendedRow;
using camrt::Fusion;
using camrt::kSmallestNormal;
using camrt::LayerRow;
using camrt::LayerRows;
using camrt::pixel_weight;
using camrt::Range;
using camrt::Rule;
using camrt::Taps;

// ---- channel weights ----

// Calls body(offset, load) over `count` >= kLanes elements in groups of kLanes. `load` reads the group from an array;
// the last group reaches back over elements that were already seen and reads zeros for them.
template <typename Body>
inline void for_each_group(Index count, const Body& body) {
    Index i = 0;
    for (; i + kLaneCount <= count; i += kLaneCount) {
        body([i](const float* array) { return load_lanes(array + i); });
    }
    if (i < count) {
        body([i, count](const float* array) { return load_last_lanes(array + count - kLaneCount, count - i); });
    }
}

inline double total_of(const float* values, Index count) {
    DoubleLanes sum;
    for_each_group(count, [&](const auto& read) { sum.add(read(values)); });
    return sum.total();
}

inline float mean_gradient(const float*, const float* gradients, Index count, Index size) {
    return static_cast<float>(total_of(gradients, count) / static_cast<double>(size));
}

inline float plus_plus_weight(const float* activations, const float* gradients, Index count, Index) {
    const Vector total = broadcast(static_cast<float>(total_of(activations, count)));
    DoubleLanes sum;
    for_each_group(count, [&](const auto& read) {
        const Lanes gradient = read(gradients);
        Lanes terms;
        for (int k = 0; k < kParts; ++k) {
            terms.part[k] = camrt::plus_plus_term(gradient.part[k], total);
        }
        sum.add(terms);
    });
    return static_cast<float>(sum.total());
}

inline float xgradcam_weight(const float* activations, const float* gradients, Index count, Index) {
    DoubleLanes total;
    DoubleLanes products;
    for_each_group(count, [&](const auto& read) {
        const Lanes activation = read(activations);
        total.add(activation);
        products.add_product(activation, read(gradients));
    });
    return camrt::xgradcam_weight(products.total(), total.total());
}

template <typename Weigh>
inline void weigh_channels(const Weigh& weigh, const float* activations, const float* gradients, std::size_t channels,
                           std::size_t size, float* weights) {
    const auto count = static_cast<Index>(size);
    for (std::size_t channel = 0; channel < channels; ++channel) {
        const float* const a = activations + channel * size;
        const float* const g = gradients + channel * size;
        if (count >= kLaneCount) {
            weights[channel] = weigh(a, g, count, count);
            continue;
        }
        float padded[2][kLaneCount] = {};
        for (Index i = 0; i < count; ++i) {
            padded[0][i] = a[i];
            padded[1][i] = g[i];
        }
        weights[channel] = weigh(padded[0], padded[1], kLaneCount, count);
    }
}

void channel_weights(Rule rule, const float* activations, const float* gradients, std::size_t channels,
                     std::size_t size, float* weights) {
    switch (rule) {
        case Rule::gradcam:
            return weigh_channels(mean_gradient, activations, gradients, channels, size, weights);
        case Rule::gradcam_plus_plus:
            return weigh_channels(plus_plus_weight, activations, gradients, channels, size, weights);
        default:
            return weigh_channels(xgradcam_weight, activations, gradients, channels, size, weights);
    }
}

// ---- weighted sums over channels ----

template <Rule rule>
inline void weigh_pixels(const float* __restrict activations, const float* __restrict gradients, Index count,
                         float* __restrict weights) {
    Index i = 0;
    for (; i + kWidth <= count; i += kWidth) {
        store(weights + i, pixel_weight<rule>(load<Vector>(activations + i), load<Vector>(gradients + i)));
    }
    for (; i < count; ++i) {
        weights[i] = pixel_weight<rule>(activations[i], gradients[i]);
    }
}

void pixel_weights(Rule rule, const float* activations, const float* gradients, std::size_t count, float* weights) {
    const auto length = static_cast<Index>(count);
    switch (rule) {
        case Rule::hirescam:
            return weigh_pixels<Rule::hirescam>(activations, gradients, length, weights);
        case Rule::gradcam_elementwise:
            return weigh_pixels<Rule::gradcam_elementwise>(activations, gradients, length, weights);
        default:
            return weigh_pixels<Rule::layercam>(activations, gradients, length, weights);
    }
}

// sum[i] += term(0, i) + ... over `channels` channels, four at a time so that the running sum is touched seldom. `term`
// is called with a type: Vector for kWidth elements from i on, float for one.
template <typename Term>
inline void add_terms(std::size_t channels, Index size, float* __restrict sum, const Term& term) {
    std::size_t channel = 0;
    for (; channel + 4 <= channels; channel += 4) {
        Index i = 0;
        for (; i + kWidth <= size; i += kWidth) {
            const Vector first = term.template at<Vector>(channel, i) + term.template at<Vector>(channel + 1, i);
            const Vector second = term.template at<Vector>(channel + 2, i) + term.template at<Vector>(channel + 3, i);
            store(sum + i, load<Vector>(sum + i) + (first + second));
        }
        for (; i < size; ++i) {
            const float first = term.template at<float>(channel, i) + term.template at<float>(channel + 1, i);
            const float second = term.template at<float>(channel + 2, i) + term.template at<float>(channel + 3, i);
            sum[i] += first + second;
        }
    }
    for (; channel < channels; ++channel) {
        Index i = 0;
        for (; i + kWidth <= size; i += kWidth) {
            store(sum + i, load<Vector>(sum + i) + term.template at<Vector>(channel, i));
        }
        for (; i < size; ++i) {
            sum[i] += term.template at<float>(channel, i);
        }
    }
}

struct ChannelTerm {
    const float* activations;
    const float* weights;
    std::size_t size;

    template <typename Number>
    [[nodiscard]] Number at(std::size_t channel, Index i) const {
        return weights[channel] * load<Number>(activations + channel * size + i);
    }
};

template <Rule rule>
struct PixelTerm {
    const float* activations;
    const float* gradients;
    std::size_t size;

    template <typename Number>
    [[nodiscard]] Number at(std::size_t channel, Index i) const {
        const auto activation = load<Number>(activations + channel * size + i);
        return pixel_weight<rule>(activation, load<Number>(gradients + channel * size + i)) * activation;
    }
};

void add_channels(const float* activations, const float* weights, std::size_t channels, std::size_t size, float* sum) {
    add_terms(channels, static_cast<Index>(size), sum, ChannelTerm{activations, weights, size});
}

void add_pixels(Rule rule, const float* activations, const float* gradients, std::size_t channels, std::size_t size,
                float* sum) {
    const auto add_rule = [&]<Rule chosen>() {
        add_terms(channels, static_cast<Index>(size), sum, PixelTerm<chosen>{activations, gradients, size});
    };
    switch (rule) {
        case Rule::hirescam:
            return add_rule.operator()<Rule::hirescam>();
        case Rule::gradcam_elementwise:
            return add_rule.operator()<Rule::gradcam_elementwise>();
        default:
            return add_rule.operator()<Rule::layercam>();
    }
}

void add(const float* __restrict values, std::size_t count, float* __restrict sum) {
    for (std::size_t i = 0; i < count; ++i) {
        sum[i] += values[i];
    }
}

// ---- ranges and rescaling ----

struct RangeLanes {
    Vector lowest;
    Vector highest;
    IntVector unusual = {};

    explicit RangeLanes(float first) : lowest(broadcast(first)), highest(broadcast(first)) {}

    void add(Vector values) {
        lowest = smaller(values, lowest);
        highest = larger(values, highest);
        unusual |= (values - values) != 0.0F;
    }

    [[nodiscard]] Range total() const {
        Range range{lowest[0], highest[0], true};
        for (int k = 0; k < kWidth; ++k) {
            range.lowest = lowest[k] < range.lowest ? lowest[k] : range.lowest;
            range.highest = highest[k] > range.highest ? highest[k] : range.highest;
            range.finite = range.finite && unusual[k] == 0;
        }
        return range;
    }
};

Range range_of(const float* values, std::size_t count) {
    const auto length = static_cast<Index>(count);
    RangeLanes range(values[0]);
    Index i = 0;
    for (; i + kWidth <= length; i += kWidth) {
        range.add(load<Vector>(values + i));
    }
    for (; i < length; ++i) {
        range.add(broadcast(values[i]));
    }
    return range.total();
}

void normalize(const float* values, std::size_t count, float lowest, float denominator, float* output) {
    for (std::size_t i = 0; i < count; ++i) {
        output[i] = ((values[i] > 0.0F ? values[i] : 0.0F) - lowest) / denominator;
    }
}

void rescale(float* values, std::size_t count, float lowest, float scale) {
    for (std::size_t i = 0; i < count; ++i) {
        values[i] = (values[i] - lowest) * scale;
    }
}

// ---- interpolation ----

// Elements index[0..kWidth) of the kWidth floats at `address`.
#if (defined(__AVX2__) || defined(__AVX512F__)) && defined(__GNUC__) && !defined(__clang__)
#define CAMRT_FAST_SHUFFLE 1
inline Vector pick(const float* address, IntVector index) { return __builtin_shuffle(load<Vector>(address), index); }
#endif

void resample_row(const float* row, const Taps& taps, float* output) {
    const auto count = static_cast<Index>(taps.count);
#ifdef CAMRT_FAST_SHUFFLE
    if (taps.compact) {
        for (Index i = 0; i < count; i += kWidth) {
            const int base = taps.low[i];
            const Vector first = pick(row + base, load<IntVector>(taps.low + i) - base);
            const Vector second = pick(row + base, load<IntVector>(taps.high + i) - base);
            store(output + i, blend(first, second, load<Vector>(taps.fraction + i)));
        }
        return;
    }
#endif
    for (Index i = 0; i < count; ++i) {
        output[i] = blend(row[taps.low[i]], row[taps.high[i]], taps.fraction[i]);
    }
}

void blend_row(const BlendedRow& row, std::size_t count, float* output) {
    for (std::size_t i = 0; i < count; ++i) {
        output[i] = blend(row.first[i], row.second[i], row.fraction);
    }
}

inline BlendedRow blended_row(const LayerRows& layer, std::size_t row) {
    return {layer.rows + static_cast<std::size_t>(layer.taps.low[row]) * layer.stride,
            layer.rows + static_cast<std::size_t>(layer.taps.high[row]) * layer.stride, layer.taps.fraction[row]};
}

// Between two source rows a column is monotonic from output row to output row, in floating point too, so the first and
// last output row of each pair of source rows hold its extremes.
Range blended_range(const LayerRows& layer, std::size_t height) {
    const int* const low = layer.taps.low;
    const BlendedRow first_row = blended_row(layer, 0);
    RangeLanes range(blend(first_row.first[0], first_row.second[0], first_row.fraction));
    for (std::size_t row = 0; row < height; ++row) {
        if (row > 0 && row + 1 < height && low[row - 1] == low[row] && low[row + 1] == low[row]) {
            continue;
        }
        const BlendedRow blended = blended_row(layer, row);
        const Vector fraction = broadcast(blended.fraction);
        for (std::size_t i = 0; i < layer.stride; i += kWidth) {
            range.add(blend(load<Vector>(blended.first + i), load<Vector>(blended.second + i), fraction));
        }
    }
    return range.total();
}

// ---- fusion ----

// The values of all layers at kWidth pixels. `count` is the number of layers if it was known to the compiler, else 0.
template <int count>
struct LayerValues {
    const LayerRow* rows;
    Index dynamic_layers;
    Index i;

    [[nodiscard]] Index layers() const { return count > 0 ? count : dynamic_layers; }

    [[nodiscard]] Vector operator[](Index layer) const {
        const LayerRow& row = rows[layer];
        const auto first = load<Vector>(row.blended.first + i);
        const auto second = load<Vector>(row.blended.second + i);
        return (blend(first, second, broadcast(row.blended.fraction)) - row.lowest) * row.scale;
    }

    [[nodiscard]] Vector lowest() const {
        Vector result = (*this)[0];
        for (Index layer = 1; layer < layers(); ++layer) {
            result = smaller((*this)[layer], result);
        }
        return result;
    }
};

inline Vector natural_logarithm(Index count) { return log_of_positive(broadcast(static_cast<float>(count))); }

struct FuseProduct {
    static Vector fuse(const auto& values) {
        Vector result = values[0];
        for (Index layer = 1; layer < values.layers(); ++layer) {
            result *= values[layer];
        }
        return result;
    }
};

struct FuseMean {
    static Vector fuse(const auto& values) {
        Vector result = values[0];
        for (Index layer = 1; layer < values.layers(); ++layer) {
            result += values[layer];
        }
        return result / static_cast<float>(values.layers());
    }
};

struct FuseMax {
    static Vector fuse(const auto& values) {
        Vector result = values[0];
        for (Index layer = 1; layer < values.layers(); ++layer) {
            result = larger(values[layer], result);
        }
        return result;
    }
};

struct FuseGeometric {
    static Vector fuse(const auto& values) {
        Vector logarithm = {};
        for (Index layer = 0; layer < values.layers(); ++layer) {
            logarithm += log_of_positive(larger(values[layer], broadcast(kSmallestNormal)));
        }
        // Maps are at most 1, up to rounding.
        const Vector mean = smaller(logarithm / static_cast<float>(values.layers()), Vector{});
        return values.lowest() > 0.0F ? exp_of_negative(mean) : Vector{};
    }
};

// m_min * numerator / (1 + m_min * (ln sum_l exp(1/m_l - 1/m_min) - offset)): the form of both Kolmogorov means that
// has no large exponent. 1/m_l - 1/m_min is taken over a common denominator.
inline Vector kolmogorov_mean(const auto& values, Vector numerator, Vector offset) {
    const Vector lowest = values.lowest();
    Vector sum = {};
    for (Index layer = 0; layer < values.layers(); ++layer) {
        const Vector value = values[layer];
        const Vector denominator = larger(value * lowest, broadcast(kSmallestNormal));
        sum += exp_of_negative((lowest - value) / denominator);
    }
    const Vector mean = lowest * numerator / (1.0F + lowest * (log_of_positive(sum) - offset));
    return lowest > 0.0F ? mean : Vector{};
}

struct FuseLogExp {
    static Vector fuse(const auto& values) {
        return kolmogorov_mean(values, natural_logarithm(values.layers()) + 1.0F, Vector{});
    }
};

struct FuseExpMean {
    static Vector fuse(const auto& values) {
        return kolmogorov_mean(values, broadcast(1.0F), natural_logarithm(values.layers()));
    }
};

// What fuse_rows was called with.
struct FuseArguments {
    const LayerRows* layers;
    std::size_t count;
    std::size_t first;
    std::size_t last;
    std::size_t width;
    LayerRow* work;
    float* output;
};

template <typename Fuse, int depth>
inline Range fuse_with(const FuseArguments& arguments) {
    LayerRow local[depth > 0 ? depth : 1];
    LayerRow* const rows = depth > 0 ? local : arguments.work;
    const std::size_t layers = depth > 0 ? depth : arguments.count;
    const auto width = static_cast<Index>(arguments.width);
    RangeLanes range(0.0F);
    for (std::size_t row = arguments.first; row < arguments.last; ++row) {
        for (std::size_t layer = 0; layer < layers; ++layer) {
            const LayerRows& source = arguments.layers[layer];
            rows[layer] = {blended_row(source, row), source.lowest, source.scale};
        }
        float* const output = arguments.output + row * arguments.width;
        LayerValues<depth> values{rows, static_cast<Index>(layers), 0};
        if (row == arguments.first) {
            range = RangeLanes(Fuse::fuse(values)[0]);
        }
        for (; values.i + kWidth <= width; values.i += kWidth) {
            const Vector fused = Fuse::fuse(values);
            store(output + values.i, fused);
            range.add(fused);
        }
        if (values.i < width) {
            const Vector fused = Fuse::fuse(values);
            for (Index k = 0; values.i + k < width; ++k) {
                output[values.i + k] = fused[k];
            }
            range.add(fused);  // its surplus lanes repeat valid columns
        }
    }
    return range.total();
}

Range fuse_product(const FuseArguments& arguments) {
    switch (arguments.count) {
        case 2:
            return fuse_with<FuseProduct, 2>(arguments);
        case 3:
            return fuse_with<FuseProduct, 3>(arguments);
        case 4:
            return fuse_with<FuseProduct, 4>(arguments);
        default:
            return fuse_with<FuseProduct, 0>(arguments);
    }
}

Range fuse_rows(Fusion fusion, const LayerRows* layers, std::size_t count, std::size_t first, std::size_t last,
                std::size_t width, LayerRow* work, float* output) {
    const FuseArguments arguments{layers, count, first, last, width, work, output};
    switch (fusion) {
        case Fusion::product:
            return fuse_product(arguments);
        case Fusion::geometric:
            return fuse_with<FuseGeometric, 0>(arguments);
        case Fusion::log_exp:
            return fuse_with<FuseLogExp, 0>(arguments);
        case Fusion::exp_mean:
            return fuse_with<FuseExpMean, 0>(arguments);
        case Fusion::mean:
            return fuse_with<FuseMean, 0>(arguments);
        default:
            return fuse_with<FuseMax, 0>(arguments);
    }
}

}  // namespace

namespace camrt::simd::CAMRT_VARIANT {

const HotLoops hot_loops = {
    .channel_weights = channel_weights,
    .pixel_weights = pixel_weights,
    .add_channels = add_channels,
    .add_pixels = add_pixels,
    .add = add,
    .range = range_of,
    .normalize = normalize,
    .rescale = rescale,
    .resample_row = resample_row,
    .blend_row = blend_row,
    .blended_range = blended_range,
    .fuse_rows = fuse_rows,
};

}  // namespace camrt::simd::CAMRT_VARIANT
