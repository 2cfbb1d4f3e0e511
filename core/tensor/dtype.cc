#include "core/tensor/dtype.h"

#include <array>
#include <utility>

#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 6> kNames{{
    {DType::float64, "float64"},
    {DType::float32, "float32"},
    {DType::bfloat16, "bfloat16"},
    {DType::float16, "float16"},
    {DType::int32, "int32"},
    {DType::int64, "int64"},
}};

}  // namespace

std::string_view name(DType dtype) {
  for (const auto& [known, text] : kNames) {
    if (known == dtype) return text;
  }
  return "unknown";
}

DType parse_dtype(std::string_view text) {
  for (const auto& [known, spelling] : kNames) {
    if (spelling == text) return known;
  }
  fail("unknown dtype '{}', expected one of float64, float32, bfloat16, float16, int32, int64", text);
}

}  // namespace heddle
