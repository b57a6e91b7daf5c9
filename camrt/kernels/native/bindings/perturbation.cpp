#include "camrt/perturbation.hpp"

#include <pybind11/stl.h>

#include <optional>

#include "arrays.hpp"
#include "register.hpp"

namespace camrt::bindings {
namespace {

using DoubleArray = py::array_t<double, py::array::c_style>;

ImageStack image_stack(const FloatArray& images) {
    require_rank(images, 4, "images");
    return {values(images), axis(images, 0), axis(images, 1), axis(images, 2), axis(images, 3)};
}

std::span<unsigned char> mutable_bytes(BoolArray& masks) {
    return {reinterpret_cast<unsigned char*>(masks.mutable_data()), static_cast<std::size_t>(masks.size())};
}

std::span<const unsigned char> bytes(const BoolArray& masks) {
    return {reinterpret_cast<const unsigned char*>(masks.data()), static_cast<std::size_t>(masks.size())};
}

std::span<const float> optional_values(const std::optional<FloatArray>& array) {
    return array ? values(*array) : std::span<const float>{};
}

BoolArray empty_masks(const MapStack& maps, std::size_t fractions) {
    return empty<bool>({maps.count, 2 * fractions, maps.height, maps.width});
}

BoolArray bound_keep_masks(ThreadPool& pool, const FloatArray& maps, const std::vector<double>& shares) {
    const MapStack stack = map_stack(maps);
    BoolArray masks = empty_masks(stack, shares.size());
    const std::span<unsigned char> output = mutable_bytes(masks);
    {
        const py::gil_scoped_release released;
        keep_masks(stack, shares, output, pool);
    }
    return masks;
}

FloatArray bound_impute(ThreadPool& pool, const FloatArray& images, const BoolArray& keep) {
    const ImageStack stack = image_stack(images);
    require_rank(keep, 4, "keep_masks");
    FloatArray filled = empty({stack.count, axis(keep, 1), stack.channels, stack.height, stack.width});
    const std::span<float> output = mutable_values(filled);
    {
        const py::gil_scoped_release released;
        impute(stack, bytes(keep), {}, output, pool);
    }
    return filled;
}

FloatArray bound_perturbation_batch(ThreadPool& pool, const FloatArray& images, const FloatArray& maps,
                                    const std::vector<double>& shares, const std::optional<FloatArray>& noise) {
    const ImageStack stack = image_stack(images);
    const MapStack saliency = map_stack(maps);
    const std::size_t count = 2 * shares.size();
    FloatArray batch = empty({stack.count, count, stack.channels, stack.height, stack.width});
    const std::span<float> output = mutable_values(batch);
    {
        const py::gil_scoped_release released;
        std::vector<unsigned char> masks(saliency.count * count * saliency.size());
        keep_masks(saliency, shares, masks, pool);
        impute(stack, masks, optional_values(noise), output, pool);
    }
    return batch;
}

FloatArray bound_masked_images(ThreadPool& pool, const FloatArray& images, const FloatArray& maps) {
    const ImageStack stack = image_stack(images);
    const MapStack saliency = map_stack(maps);
    FloatArray masked = empty({stack.count, stack.channels, stack.height, stack.width});
    const std::span<float> output = mutable_values(masked);
    {
        const py::gil_scoped_release released;
        multiply(stack, saliency, output, pool);
    }
    return masked;
}

DoubleArray bound_pearson(ThreadPool& pool, const FloatArray& first, const FloatArray& second) {
    const MapStack one = map_stack(first);
    const MapStack other = map_stack(second);
    DoubleArray correlations = empty<double>({one.count});
    const std::span<double> output = mutable_values(correlations);
    {
        const py::gil_scoped_release released;
        pearson(one, other, output, pool);
    }
    return correlations;
}

DoubleArray bound_mean_absolute(ThreadPool& pool, const FloatArray& maps) {
    const MapStack stack = map_stack(maps);
    DoubleArray means = empty<double>({stack.count});
    const std::span<double> output = mutable_values(means);
    {
        const py::gil_scoped_release released;
        mean_absolute(stack, output, pool);
    }
    return means;
}

}  // namespace

void register_perturbation(py::class_<ThreadPool>& kernels) {
    const auto images = py::arg("images").noconvert();
    const auto maps = py::arg("maps").noconvert();
    kernels.def("keep_masks", &bound_keep_masks, maps, py::arg("shares"));
    kernels.def("impute", &bound_impute, images, py::arg("keep_masks").noconvert());
    kernels.def("perturbation_batch", &bound_perturbation_batch, images, maps, py::arg("shares"),
                py::arg("noise").noconvert());
    kernels.def("masked_images", &bound_masked_images, images, maps);
    kernels.def("pearson", &bound_pearson, py::arg("first").noconvert(), py::arg("second").noconvert());
    kernels.def("mean_absolute", &bound_mean_absolute, maps);
}

}  // namespace camrt::bindings
