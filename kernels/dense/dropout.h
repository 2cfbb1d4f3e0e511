// Dropout with a mask that is never stored.   y (=|+=) x / (1 - p) where an element is kept, 0 where it is dropped
// Element i, counted row by row, is dropped where word first_element + i of Philox (seed, RandomStream::dropout) is
// below p 2^32. So the gradient of x is the same function of that of y. What is dropped is 0 also where x is infinite
// or NaN. Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural
// networks from overfitting", JMLR 15 (2014).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tensor/random.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct DropoutArgs {
  RowsView x;
  RowsDestination y;  // shape and dtype of x; may be the same memory
  double p = 0.0;     // from 0 to 1: the probability that an element is dropped
  uint64_t seed = 0;
  int64_t first_element = 0;  // of the mask: where x is a part of a larger tensor, what comes before it there
  // On the device of x, in place of `seed`, whose bits it holds: read when the kernel runs. nullptr: `seed` counts.
  const int64_t* seed_on_device = nullptr;
};

// Which elements are dropped and what the others are multiplied by, for both devices.
struct DropoutRule {
  uint64_t seed;
  uint64_t dropped_below;  // words below this; 2^32, which no word reaches, where p is 1
  double scale;

  DropoutRule(double p, uint64_t seed_of_mask)
      : seed(seed_of_mask),
        dropped_below(static_cast<uint64_t>(std::llround(p * 0x1p32))),
        scale(p < 1.0 ? 1.0 / (1.0 - p) : 0.0) {}

  // The words of elements 4 * block .. 4 * block + 3.
  HEDDLE_HOST_DEVICE PhiloxBlock words(int64_t block) const {
    return philox(seed, static_cast<uint64_t>(RandomStream::dropout), static_cast<uint64_t>(block));
  }
};

HEDDLE_KERNEL(dropout, DropoutArgs);

}  // namespace heddle::kernels
