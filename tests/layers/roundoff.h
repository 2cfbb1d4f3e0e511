// How far a number is moved at most when it is rounded to a dtype.
#pragma once

#include "core/tensor/dtype.h"

namespace heddle::test {

// Half a unit in the last place, relative.
inline double roundoff(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 0x1p-53;
    case DType::float32:
      return 0x1p-24;
    case DType::bfloat16:
      return 0x1p-8;
    case DType::float16:
      return 0x1p-11;
    default:
      return 0.0;
  }
}

}  // namespace heddle::test
