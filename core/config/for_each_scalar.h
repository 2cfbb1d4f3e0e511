// The list of ConfigScalar types, for explicit instantiations: HEDDLE_FOR_EACH_CONFIG_SCALAR(INSTANTIATE) is
// INSTANTIATE(T) for each of them.
#pragma once

#include <cstdint>
#include <string>

#define HEDDLE_FOR_EACH_CONFIG_SCALAR(INSTANTIATE) \
  INSTANTIATE(int)                                 \
  INSTANTIATE(std::int64_t)                        \
  INSTANTIATE(std::uint64_t)                       \
  INSTANTIATE(float)                               \
  INSTANTIATE(double)                              \
  INSTANTIATE(bool)                                \
  INSTANTIATE(std::string)
