// Linear imputation: missing pixels from their surroundings. The formulas are those of the Python protocol
// (camrt/kernels/perturbation.py).
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "camrt/perturbation_loops.hpp"

namespace camrt {

// Fills missing pixels of images of one size, one mask after the other: conjugate gradients, preconditioned by a
// multigrid cycle on Galerkin operators. Not for use by several threads at once.
class Imputer {
 public:
    // Throws std::invalid_argument for an empty axis.
    Imputer(std::size_t height, std::size_t width);
    ~Imputer();
    Imputer(const Imputer&) = delete;
    Imputer& operator=(const Imputer&) = delete;

    // The pixels to fill from now on; keep: (H, W), not 0 = known. Returns how many are known.
    std::size_t set_mask(const unsigned char* keep);

    // image and output: (H, W) of one channel, with the mask that was set last, which keeps at least one pixel.
    // `deviation` is the channel's standard deviation: the error is about 3e-4 of it at most. Throws std::runtime_error
    // if there is no convergence.
    void fill(const float* image, double deviation, float* output);

 private:
    struct Workspace;
    std::unique_ptr<Workspace> workspace_;
};

}  // namespace camrt
