// NumPy arrays as spans. Shapes are read while the GIL is held, data is used after it is released.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "camrt/resample.hpp"

namespace camrt::bindings {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style>;
using BoolArray = py::array_t<bool, py::array::c_style>;

inline std::size_t axis(const py::array& array, py::ssize_t index) {
    return static_cast<std::size_t>(array.shape(index));
}

inline void require_rank(const py::array& array, py::ssize_t rank, const char* name) {
    if (array.ndim() != rank) {
        throw std::invalid_argument(std::string(name) + " has rank " + std::to_string(array.ndim()) + ", expected " +
                                    std::to_string(rank));
    }
}

inline std::span<const float> values(const FloatArray& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename Element>
std::span<Element> mutable_values(py::array_t<Element, py::array::c_style>& array) {
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <typename Element = float>
py::array_t<Element, py::array::c_style> empty(std::initializer_list<std::size_t> shape) {
    return py::array_t<Element, py::array::c_style>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

inline MapStack map_stack(const FloatArray& maps) {
    require_rank(maps, 3, "maps");
    return {values(maps), axis(maps, 0), axis(maps, 1), axis(maps, 2)};
}

}  // namespace camrt::bindings
