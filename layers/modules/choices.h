// The storage dtypes as a config names them: float64 | float32 | bfloat16 | float16.
//   DType dtype = node.get_choice<DType>("dtype", DType::float32, dtype_choices());
#pragma once

#include <string>

#include "core/config/config_node.h"
#include "core/tensor/dtype.h"

namespace heddle {

inline Choices<DType> dtype_choices() {
  Choices<DType> choices;
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    choices.emplace_back(std::string(name(dtype)), dtype);
  }
  return choices;
}

}  // namespace heddle
