// Element types of a tensor: the storage dtypes every operator takes and the integer dtypes of indices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace heddle {

enum class DType : uint8_t { float64, float32, bfloat16, float16, int32, int64 };

// Bytes of one element.
constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  return 0;
}

constexpr bool is_floating(DType dtype) { return dtype != DType::int32 && dtype != DType::int64; }

// The dtype that arithmetic, statistics and parameter gradients use: float64 for float64, float32 for the rest.
constexpr DType accumulate_type(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

// "float32" and so on, the spelling of YAML and of the command line.
std::string_view name(DType dtype);

// Inverse of name(). Throws Error listing the known names.
DType parse_dtype(std::string_view text);

}  // namespace heddle
