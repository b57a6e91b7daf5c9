#include "camrt/layer_map.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <vector>

#include "camrt/cpu.hpp"
#include "camrt/scratch.hpp"

namespace camrt {
namespace {

// Channels of one task are chosen by this alone, never by the number of threads: the order of additions, and so the
// result, is the same for all of them.
constexpr std::size_t kElementsPerTask = 32 * 1024;
constexpr std::size_t kChannelGroup = 4;

void require(bool condition, const char* what) {
    if (!condition) {
        throw std::invalid_argument(what);
    }
}

std::size_t volume(const LayerArrays& layer) { return layer.channels * layer.size; }

void check(const LayerArrays& layer) {
    require(volume(layer) > 0 && layer.classes > 0, "a layer has an empty axis");
    require(layer.images == 1 || layer.images == layer.classes, "N is neither 1 nor M");
    require(layer.activations.size() == layer.images * volume(layer), "activations do not have their shape's size");
}

void check_with_gradients(const LayerArrays& layer) {
    check(layer);
    require(layer.gradients.size() == layer.classes * volume(layer), "gradients do not have their shape's size");
}

bool is_channel_rule(Rule rule) {
    return rule == Rule::gradcam || rule == Rule::gradcam_plus_plus || rule == Rule::xgradcam;
}

const float* activations_of(const LayerArrays& layer, std::size_t index) {
    return layer.activations.data() + (layer.images == 1 ? 0 : index * volume(layer));
}

std::size_t channels_per_task(const LayerArrays& layer) {
    return round_up(std::max<std::size_t>(1, kElementsPerTask / layer.size), kChannelGroup);
}

// The sum over some channels of one map.
struct Block {
    const LayerArrays* layer;
    std::size_t class_index;
    std::size_t first_channel;
    std::size_t channels;
    float* sum;
};

// Sums are split into blocks of channels; the first block of a map adds into the output itself, the others into
// scratch.
class BlockedSums {
 public:
    BlockedSums(std::span<const LayerArrays> layers, std::span<const std::span<float>> outputs)
        : scratch_(extra_floats(layers)) {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            for (std::size_t m = 0; m < layers[l].classes; ++m) {
                add_map(layers[l], m, outputs[l].data() + m * layers[l].size);
            }
            cost_ += 2 * layers[l].classes * volume(layers[l]);
        }
    }

    // add(block) adds the weighted channels of a block to block.sum.
    template <typename Add>
    void run(ThreadPool& pool, const Add& add) {
        pool.run(blocks_.size(), cost_, [&](std::size_t index) {
            const Block& block = blocks_[index];
            std::fill_n(block.sum, block.layer->size, 0.0F);
            add(block);
        });
        const HotLoops& loops = hot_loops();
        float* map = nullptr;
        for (const Block& block : blocks_) {
            if (block.first_channel == 0) {
                map = block.sum;
            } else {
                loops.add(block.sum, block.layer->size, map);
            }
        }
    }

 private:
    // What the blocks after the first of every map add into.
    static std::size_t extra_floats(std::span<const LayerArrays> layers) {
        std::size_t floats = 0;
        for (const LayerArrays& layer : layers) {
            const std::size_t blocks = (layer.channels - 1) / channels_per_task(layer) + 1;
            floats += layer.classes * (blocks - 1) * round_up(layer.size, kLanes);
        }
        return floats;
    }

    void add_map(const LayerArrays& layer, std::size_t class_index, float* output) {
        const std::size_t step = channels_per_task(layer);
        for (std::size_t first = 0; first < layer.channels; first += step) {
            float* const sum = first == 0 ? output : scratch_.take(layer.size);
            blocks_.push_back({&layer, class_index, first, std::min(step, layer.channels - first), sum});
        }
    }

    std::vector<Block> blocks_;
    Scratch scratch_;
    std::size_t cost_ = 0;
};

void add_block(const HotLoops& loops, Rule rule, const Block& block) {
    const std::size_t size = block.layer->size;
    const float* activations = activations_of(*block.layer, block.class_index) + block.first_channel * size;
    const float* gradients =
        block.layer->gradients.data() + block.class_index * volume(*block.layer) + block.first_channel * size;
    if (!is_channel_rule(rule)) {
        return loops.add_pixels(rule, activations, gradients, block.channels, size, block.sum);
    }
    // A group's activations are still in the cache when its weights are known.
    const std::size_t step = round_up(std::max<std::size_t>(1, 2048 / size), kChannelGroup);
    std::array<float, 2048 + kChannelGroup> weights;
    for (std::size_t channel = 0; channel < block.channels; channel += step) {
        const std::size_t channels = std::min(step, block.channels - channel);
        const std::size_t offset = channel * size;
        loops.channel_weights(rule, activations + offset, gradients + offset, channels, size, weights.data());
        loops.add_channels(activations + offset, weights.data(), channels, size, block.sum);
    }
}

void normalize_one(const HotLoops& loops, const float* map, std::size_t size, float* output) {
    const Range range = loops.range(map, size);
    if (!range.finite) {
        std::fill_n(output, size, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    const float lowest = std::max(range.lowest, 0.0F);
    const float highest = std::max(range.highest, 0.0F);
    loops.normalize(map, size, lowest, highest - lowest + kNormalizeEpsilon, output);
}

}  // namespace

void channel_weights(const LayerArrays& layer, Rule rule, std::span<float> weights, ThreadPool& pool) {
    check_with_gradients(layer);
    require(is_channel_rule(rule), "not a channel rule");
    require(weights.size() == layer.classes * layer.channels, "weights do not have their shape's size");
    const HotLoops& loops = hot_loops();
    const std::size_t step = channels_per_task(layer);
    const std::size_t blocks = (layer.channels - 1) / step + 1;
    pool.run(layer.classes * blocks, 2 * layer.gradients.size(), [&](std::size_t task) {
        const std::size_t m = task / blocks;
        const std::size_t first = task % blocks * step;
        loops.channel_weights(rule, activations_of(layer, m) + first * layer.size,
                              layer.gradients.data() + m * volume(layer) + first * layer.size,
                              std::min(step, layer.channels - first), layer.size,
                              weights.data() + m * layer.channels + first);
    });
}

void pixel_weights(const LayerArrays& layer, Rule rule, std::span<float> weights, ThreadPool& pool) {
    check_with_gradients(layer);
    require(!is_channel_rule(rule), "not a pixel rule");
    require(weights.size() == layer.gradients.size(), "weights do not have their shape's size");
    const HotLoops& loops = hot_loops();
    const std::size_t blocks = (volume(layer) - 1) / kElementsPerTask + 1;
    pool.run(layer.classes * blocks, 2 * weights.size(), [&](std::size_t task) {
        const std::size_t m = task / blocks;
        const std::size_t first = task % blocks * kElementsPerTask;
        const std::size_t offset = m * volume(layer) + first;
        loops.pixel_weights(rule, activations_of(layer, m) + first, layer.gradients.data() + offset,
                            std::min(kElementsPerTask, volume(layer) - first), weights.data() + offset);
    });
}

void weighted_sum_of_pixels(const LayerArrays& layer, std::span<float> output, ThreadPool& pool) {
    check_with_gradients(layer);
    require(output.size() == layer.classes * layer.size, "output does not have its shape's size");
    const HotLoops& loops = hot_loops();
    BlockedSums({&layer, 1}, {&output, 1}).run(pool, [&](const Block& block) {
        add_block(loops, Rule::hirescam, block);
    });
}

void weighted_sum_of_channels(const LayerArrays& layer, std::span<const float> weights, std::span<float> output,
                              ThreadPool& pool) {
    check(layer);
    require(weights.size() == layer.classes * layer.channels, "weights do not have their shape's size");
    require(output.size() == layer.classes * layer.size, "output does not have its shape's size");
    const HotLoops& loops = hot_loops();
    BlockedSums({&layer, 1}, {&output, 1}).run(pool, [&](const Block& block) {
        loops.add_channels(activations_of(layer, block.class_index) + block.first_channel * layer.size,
                           weights.data() + block.class_index * layer.channels + block.first_channel, block.channels,
                           layer.size, block.sum);
    });
}

void layer_maps(std::span<const LayerArrays> layers, Rule rule, std::span<const std::span<float>> outputs,
                ThreadPool& pool) {
    require(layers.size() == outputs.size(), "as many outputs as layers are needed");
    for (std::size_t l = 0; l < layers.size(); ++l) {
        check_with_gradients(layers[l]);
        require(outputs[l].size() == layers[l].classes * layers[l].size, "output does not have its shape's size");
    }
    const HotLoops& loops = hot_loops();
    BlockedSums(layers, outputs).run(pool, [&](const Block& block) { add_block(loops, rule, block); });
    for (std::size_t l = 0; l < layers.size(); ++l) {
        normalize(outputs[l], layers[l].classes, outputs[l], pool);
    }
}

void normalize(std::span<const float> maps, std::size_t count, std::span<float> output, ThreadPool& pool) {
    require(count > 0 && !maps.empty() && maps.size() % count == 0, "maps do not have their shape's size");
    require(output.size() == maps.size(), "output does not have its shape's size");
    const HotLoops& loops = hot_loops();
    const std::size_t size = maps.size() / count;
    pool.run(count, 2 * maps.size(),
             [&](std::size_t m) { normalize_one(loops, maps.data() + m * size, size, output.data() + m * size); });
}

}  // namespace camrt
