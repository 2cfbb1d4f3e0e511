// Dropout with a mask that is never stored.   y (=|+=) x / (1 - p) where an element is kept, 0 where it is dropped
// Element i, counted row by row, is dropped where word i of Philox (seed, RandomStream::dropout) is below p 2^32. So
// the gradient of x is the same function of that of y. What is dropped is 0 also where x is infinite or NaN. Source:
// Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
// overfitting", JMLR 15 (2014).
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct DropoutArgs {
  RowsView x;
  RowsDestination y;  // shape and dtype of x; may be the same memory
  double p = 0.0;     // from 0 to 1: the probability that an element is dropped
  uint64_t seed = 0;
};

HEDDLE_CPU_KERNEL(dropout, DropoutArgs);

}  // namespace heddle::kernels
