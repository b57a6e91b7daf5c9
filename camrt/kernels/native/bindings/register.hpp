// One registration function a source file of this folder.
#pragma once

#include <pybind11/pybind11.h>

#include "camrt/thread_pool.hpp"

namespace camrt::bindings {

void register_types(pybind11::module_& module);
void register_layer_map(pybind11::class_<ThreadPool>& kernels);
void register_fusion(pybind11::class_<ThreadPool>& kernels);
void register_resample(pybind11::class_<ThreadPool>& kernels);
void register_perturbation(pybind11::class_<ThreadPool>& kernels);

}  // namespace camrt::bindings
