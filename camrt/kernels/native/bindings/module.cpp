#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "camrt/cpu.hpp"
#include "register.hpp"

PYBIND11_MODULE(_native, module) {
    namespace py = pybind11;
    module.doc() = "The kernels in C++. Used through camrt.kernels.native_backend, which checks arguments.";
    try {
        camrt::cpu_features();
    } catch (const std::invalid_argument& error) {
        throw py::import_error(error.what());
    }
    module.def("cpu_features", [] {
        const camrt::CpuFeatures& features = camrt::cpu_features();
        return py::make_tuple(features.active, features.available);
    });

    camrt::bindings::register_types(module);
    py::class_<camrt::ThreadPool> kernels(module, "Kernels");
    kernels.def(py::init<std::size_t>(), py::arg("threads"));
    kernels.def_property_readonly("threads", &camrt::ThreadPool::threads);
    camrt::bindings::register_layer_map(kernels);
    camrt::bindings::register_fusion(kernels);
    camrt::bindings::register_resample(kernels);
    camrt::bindings::register_perturbation(kernels);
}
