// Products of a matrix and a vector with long sums, which libraries add up one term after the other.
#pragma once

#include <cstdint>

#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {

// Computes the product, with k terms in each sum, where c is a row or a column and the sums are long. Returns false and
// does nothing otherwise.
bool multiply_vector(Context& context, const GemmArgs& args, int64_t k);

}  // namespace heddle::kernels::cuda
