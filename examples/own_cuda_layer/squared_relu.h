// y = max(x, 0)^2 on a GPU.
#pragma once

#include "heddle/core/autograd/tape.h"

// x: float64 or float32, any shape. Throws heddle::Error for other dtypes and when x is not on a GPU.
heddle::Variable squared_relu(heddle::Tape& tape, const heddle::Variable& x);
