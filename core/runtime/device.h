// Names of the places where tensors live.
#pragma once

#include <string>
#include <string_view>

namespace heddle {

// meta: real accounting, no data, no kernels.
enum class DeviceType { cpu, cuda, meta };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;  // which GPU; 0 elsewhere

  bool operator==(const Device&) const = default;
};

// "cpu", "meta", "cuda:1".
std::string to_string(Device device);

// Reads "cpu", "meta", "cuda" or "cuda:1". Throws Error naming what was expected.
Device parse_device(std::string_view text);

// What parse_device() reads, and "auto": the first GPU where heddle finds one, else the CPU.
Device resolve_device(std::string_view text);

}  // namespace heddle
