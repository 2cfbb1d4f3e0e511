// Dropout.   y = x / (1 - p) where an element is kept, 0 where it is dropped                    docs/layers.md#dropout
// x: (..., dim), rows may be strided. The mask is a function of the seed and of the place of an element alone; it is
// not stored: backward draws it again. Nothing is saved.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"

namespace heddle {

struct DropoutOptions {
  double p = 0.0;     // from 0 to 1: the probability that an element is dropped
  uint64_t seed = 0;  // of the mask: one for each place and step
  // Where x is a part of a larger tensor that has one mask: the number of elements that come before it there.
  int64_t first_element = 0;
  // int64, one element on the device of x, which holds the bits of a seed in place of `seed`. It is read when the
  // operator runs and again in backward, so that a graph can draw another mask with each replay.
  Tensor seed_on_device = {};
};

// On a tape for inference, and where p is 0, the result is x itself. Throws Error for a p outside [0, 1], and for a
// first_element that is negative or so large that places in the mask are beyond an int64.
Variable dropout(Tape& tape, const Variable& x, const DropoutOptions& options);

}  // namespace heddle
