#include "camrt/types.hpp"

#include "register.hpp"

namespace camrt::bindings {

namespace py = pybind11;

void register_types(py::module_& module) {
    py::enum_<Rule>(module, "Rule")
        .value("gradcam", Rule::gradcam)
        .value("gradcam_plus_plus", Rule::gradcam_plus_plus)
        .value("xgradcam", Rule::xgradcam)
        .value("hirescam", Rule::hirescam)
        .value("gradcam_elementwise", Rule::gradcam_elementwise)
        .value("layercam", Rule::layercam);
    py::enum_<Fusion>(module, "Fusion")
        .value("product", Fusion::product)
        .value("geometric", Fusion::geometric)
        .value("log_exp", Fusion::log_exp)
        .value("exp_mean", Fusion::exp_mean)
        .value("mean", Fusion::mean)
        .value("max", Fusion::max);
    py::enum_<Order>(module, "Order")
        .value("normalize_twice", Order::normalize_twice)
        .value("resize_once", Order::resize_once);
}

}  // namespace camrt::bindings
