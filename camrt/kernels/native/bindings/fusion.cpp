#include "camrt/fusion.hpp"

#include <pybind11/stl.h>

#include "arrays.hpp"
#include "register.hpp"

namespace camrt::bindings {
namespace {

std::pair<FloatArray, BoolArray> bound_fuse_layers(ThreadPool& pool, const std::vector<FloatArray>& layer_maps,
                                                   std::size_t height, std::size_t width, Fusion fusion, Order order) {
    std::vector<MapStack> layers;
    for (const FloatArray& maps : layer_maps) {
        layers.push_back(map_stack(maps));
    }
    if (layers.empty()) {
        throw std::invalid_argument("at least one layer is needed");
    }
    FloatArray fused = empty({layers.front().count, height, width});
    BoolArray degenerate = empty<bool>({layers.front().count, layers.size()});
    const std::span<float> output = mutable_values(fused);
    const std::span<bool> flags = mutable_values(degenerate);
    {
        const py::gil_scoped_release released;
        fuse_layers(layers, height, width, fusion, order, output, flags, pool);
    }
    return {std::move(fused), std::move(degenerate)};
}

}  // namespace

void register_fusion(py::class_<ThreadPool>& kernels) {
    kernels.def("fuse_layers", &bound_fuse_layers, py::arg("layer_maps").noconvert(), py::arg("height"),
                py::arg("width"), py::arg("fusion"), py::arg("order"));
}

}  // namespace camrt::bindings
