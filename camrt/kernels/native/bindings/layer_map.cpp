#include "camrt/layer_map.hpp"

#include <pybind11/stl.h>

#include "arrays.hpp"
#include "register.hpp"

namespace camrt::bindings {
namespace {

LayerArrays layer_arrays(const FloatArray& activations, const FloatArray& gradients) {
    require_rank(activations, 4, "activations");
    require_rank(gradients, 4, "gradients");
    return {values(activations), values(gradients),  axis(activations, 0),
            axis(gradients, 0),  axis(gradients, 1), axis(gradients, 2) * axis(gradients, 3)};
}

FloatArray empty_maps(const FloatArray& gradients) {
    return empty({axis(gradients, 0), axis(gradients, 2), axis(gradients, 3)});
}

FloatArray bound_channel_weights(ThreadPool& pool, const FloatArray& activations, const FloatArray& gradients,
                                 Rule rule) {
    const LayerArrays layer = layer_arrays(activations, gradients);
    FloatArray weights = empty({layer.classes, layer.channels});
    const std::span<float> output = mutable_values(weights);
    {
        const py::gil_scoped_release released;
        channel_weights(layer, rule, output, pool);
    }
    return weights;
}

FloatArray bound_pixel_weights(ThreadPool& pool, const FloatArray& activations, const FloatArray& gradients,
                               Rule rule) {
    const LayerArrays layer = layer_arrays(activations, gradients);
    FloatArray weights = empty({layer.classes, layer.channels, axis(gradients, 2), axis(gradients, 3)});
    const std::span<float> output = mutable_values(weights);
    {
        const py::gil_scoped_release released;
        pixel_weights(layer, rule, output, pool);
    }
    return weights;
}

FloatArray bound_weighted_sum_of_pixels(ThreadPool& pool, const FloatArray& activations, const FloatArray& weights) {
    const LayerArrays layer = layer_arrays(activations, weights);
    FloatArray maps = empty_maps(weights);
    const std::span<float> output = mutable_values(maps);
    {
        const py::gil_scoped_release released;
        weighted_sum_of_pixels(layer, output, pool);
    }
    return maps;
}

FloatArray bound_weighted_sum_of_channels(ThreadPool& pool, const FloatArray& activations, const FloatArray& weights) {
    require_rank(activations, 4, "activations");
    require_rank(weights, 2, "weights");
    const LayerArrays layer{values(activations),  {},
                            axis(activations, 0), axis(weights, 0),
                            axis(activations, 1), axis(activations, 2) * axis(activations, 3)};
    FloatArray maps = empty({layer.classes, axis(activations, 2), axis(activations, 3)});
    const std::span<float> output = mutable_values(maps);
    {
        const py::gil_scoped_release released;
        weighted_sum_of_channels(layer, values(weights), output, pool);
    }
    return maps;
}

std::vector<FloatArray> bound_layer_maps(ThreadPool& pool, const std::vector<FloatArray>& activations,
                                         const std::vector<FloatArray>& gradients, Rule rule) {
    if (activations.size() != gradients.size()) {
        throw std::invalid_argument("as many gradients as activations are needed");
    }
    std::vector<LayerArrays> layers;
    std::vector<FloatArray> maps;
    std::vector<std::span<float>> outputs;
    for (std::size_t l = 0; l < activations.size(); ++l) {
        layers.push_back(layer_arrays(activations[l], gradients[l]));
        maps.push_back(empty_maps(gradients[l]));
        outputs.push_back(mutable_values(maps.back()));
    }
    {
        const py::gil_scoped_release released;
        layer_maps(layers, rule, outputs, pool);
    }
    return maps;
}

FloatArray bound_normalize(ThreadPool& pool, const FloatArray& maps) {
    const MapStack stack = map_stack(maps);
    FloatArray normalized = empty({stack.count, stack.height, stack.width});
    const std::span<float> output = mutable_values(normalized);
    {
        const py::gil_scoped_release released;
        normalize(stack.values, stack.count, output, pool);
    }
    return normalized;
}

}  // namespace

void register_layer_map(py::class_<ThreadPool>& kernels) {
    const auto activations = py::arg("activations").noconvert();
    const auto gradients = py::arg("gradients").noconvert();
    const auto weights = py::arg("weights").noconvert();
    kernels.def("channel_weights", &bound_channel_weights, activations, gradients, py::arg("rule"));
    kernels.def("pixel_weights", &bound_pixel_weights, activations, gradients, py::arg("rule"));
    kernels.def("weighted_sum_of_channels", &bound_weighted_sum_of_channels, activations, weights);
    kernels.def("weighted_sum_of_pixels", &bound_weighted_sum_of_pixels, activations, weights);
    kernels.def("layer_maps", &bound_layer_maps, activations, gradients, py::arg("rule"));
    kernels.def("normalize", &bound_normalize, py::arg("maps").noconvert());
}

}  // namespace camrt::bindings
