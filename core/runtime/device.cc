#include "core/runtime/device.h"

#include <charconv>

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
  if (text.starts_with(prefix)) {
    int index = -1;
    std::from_chars(text.data() + prefix.size(), text.data() + text.size(), index);
    const Device device{DeviceType::cuda, index};
    if (to_string(device) == text && index >= 0) return device;  // not cuda:01, cuda:-0 or cuda:1x
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
