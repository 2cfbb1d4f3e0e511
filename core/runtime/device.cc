#include "core/runtime/device.h"

#include <charconv>
#include <system_error>

#include "core/runtime/backend.h"
#include "core/runtime/error.h"

namespace heddle {

std::string to_string(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::meta:
      return "meta";
    case DeviceType::cuda:
      return fmt::format("cuda:{}", device.index);
  }
  return "unknown";
}

Device parse_device(std::string_view text) {
  if (text == "cpu") return {DeviceType::cpu};
  if (text == "meta") return {DeviceType::meta};
  if (text == "cuda") return {DeviceType::cuda};
  constexpr std::string_view prefix = "cuda:";
  if (text.starts_with(prefix) && text.size() > prefix.size()) {
    int index = -1;
    const auto [end, code] = std::from_chars(text.data() + prefix.size(), text.data() + text.size(), index);
    if (code == std::errc() && end == text.data() + text.size() && index >= 0) return {DeviceType::cuda, index};
  }
  fail("unknown device '{}', expected cpu, cuda, cuda:INDEX or meta", text);
}

Device resolve_device(std::string_view text) {
  if (text != "auto") return parse_device(text);
#if defined(HEDDLE_CUDA)
  if (cuda_device_count() > 0) return {DeviceType::cuda};
#endif
  return {DeviceType::cpu};
}

}  // namespace heddle
