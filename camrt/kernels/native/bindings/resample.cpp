#include "camrt/resample.hpp"

#include "arrays.hpp"
#include "register.hpp"

namespace camrt::bindings {
namespace {

FloatArray bound_resize(ThreadPool& pool, const FloatArray& maps, std::size_t height, std::size_t width) {
    const MapStack stack = map_stack(maps);
    FloatArray resized = empty({stack.count, height, width});
    const std::span<float> output = mutable_values(resized);
    {
        const py::gil_scoped_release released;
        resize(stack, height, width, output, pool);
    }
    return resized;
}

FloatArray bound_warp_affine(ThreadPool& pool, const FloatArray& maps, const FloatArray& matrix, std::size_t height,
                             std::size_t width) {
    const MapStack stack = map_stack(maps);
    const std::span<const float> coefficients = values(matrix);
    FloatArray warped = empty({stack.count, height, width});
    const std::span<float> output = mutable_values(warped);
    {
        const py::gil_scoped_release released;
        warp_affine(stack, coefficients, height, width, output, pool);
    }
    return warped;
}

}  // namespace

void register_resample(py::class_<ThreadPool>& kernels) {
    const auto maps = py::arg("maps").noconvert();
    kernels.def("resize", &bound_resize, maps, py::arg("height"), py::arg("width"));
    kernels.def("warp_affine", &bound_warp_affine, maps, py::arg("matrix").noconvert(), py::arg("height"),
                py::arg("width"));
}

}  // namespace camrt::bindings
