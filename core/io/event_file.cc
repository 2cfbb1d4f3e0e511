#include "core/io/event_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <system_error>
#include <utility>

namespace heddle {
namespace {

namespace fs = std::filesystem;

// The numbers of the fields in their messages.
enum EventField {
  field_wall_time = 1,
  field_step = 2,
  field_file_version = 3,
  field_summary = 5,
  field_session_log = 7
};
enum SummaryField { field_value = 1 };
enum ValueField { field_tag = 1, field_simple_value = 2, field_tensor = 8, field_metadata = 9 };
enum TensorField { field_dtype = 1, field_tensor_shape = 2, field_string_value = 8 };
enum MetadataField { field_plugin_data = 1 };
enum PluginDataField { field_plugin_name = 1 };
enum SessionLogField { field_status = 1 };
constexpr uint64_t kDtypeString = 7, kStatusStart = 1;

// The types of fields on the wire.
enum WireType { wire_varint = 0, wire_fixed64 = 1, wire_bytes = 2, wire_fixed32 = 5 };

template <class T>
std::string little_endian(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof value; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string tag(int field, WireType type) { return varint(static_cast<uint64_t>(field << 3 | type)); }
std::string number(int field, uint64_t value) { return tag(field, wire_varint) + varint(value); }
std::string number(int field, double value) {
  return tag(field, wire_fixed64) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string number(int field, float value) {
  return tag(field, wire_fixed32) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes(int field, std::string_view contents) {
  return tag(field, wire_bytes) + varint(contents.size()) + std::string(contents);
}

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    table[byte] = crc;
  }
  return table;
}

// Checksums are stored rotated and shifted, so that a record which holds records is not summed up to a constant.
uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u; }

std::string record(std::string_view message) {
  const std::string length = little_endian(static_cast<uint64_t>(message.size()));
  return length + little_endian(masked_crc(length)) + std::string(message) + little_endian(masked_crc(message));
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

constexpr std::string_view kPrefix = "events.out.tfevents.";
// The time in a name has ten digits, so that names are sorted by it.
constexpr int64_t kLastTime = 9'999'999'999;

// The second `time`, or a later one, after those of the files that are in the folder. TensorBoard reads files in the
// order of their names, and of two from one second, or after the clock was set back, the new one must come last.
int64_t second_of_new_file(const fs::path& folder, double time) {
  int64_t second = std::llround(std::floor(time));
  std::error_code unreadable;
  for (fs::directory_iterator entry(folder, unreadable); entry != fs::directory_iterator();
       entry.increment(unreadable)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t other = -1;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), other);
    if (other < kLastTime) second = std::max(second, other + 1);
  }
  return second;
}

// events.out.tfevents.TIME.HOST.PROCESS.NUMBER, of which only the beginning has a meaning for readers.
fs::path new_path(const fs::path& folder, double time) {
  const int64_t second = second_of_new_file(folder, time);
  return folder / fmt::format("{}{:010d}.{}.{}.0", kPrefix, second, host_name(), ::getpid());
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> table = crc_table();
  uint32_t crc = ~0u;
  for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  return ~crc;
}

EventFile::EventFile(const fs::path& folder, double time) : path_(new_path(folder, time)) {
  records_ = record(number(field_wall_time, time) + bytes(field_file_version, "brain.Event:2"));
}

void EventFile::add(double time, int64_t step, std::string_view what) {
  records_ +=
      record(number(field_wall_time, time) + number(field_step, static_cast<uint64_t>(step)) + std::string(what));
}

void EventFile::start(double time, int64_t step) {
  add(time, step, bytes(field_session_log, number(field_status, kStatusStart)));
}

void EventFile::scalars(double time, int64_t step, std::span<const EventScalar> scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars) {
    summary += bytes(field_value, bytes(field_tag, name) + number(field_simple_value, static_cast<float>(value)));
  }
  add(time, step, bytes(field_summary, summary));
}

void EventFile::text(double time, int64_t step, std::string_view name, std::string_view text) {
  const std::string tensor =
      number(field_dtype, kDtypeString) + bytes(field_tensor_shape, "") + bytes(field_string_value, text);
  const std::string metadata = bytes(field_plugin_data, bytes(field_plugin_name, "text"));
  add(time, step,
      bytes(field_summary, bytes(field_value, bytes(field_tag, name) + bytes(field_tensor, tensor) +
                                                  bytes(field_metadata, metadata))));
}

void EventFile::write() {
  if (!file_) file_ = std::make_unique<AppendFile>(path_);
  file_->append(records_);
  records_.clear();
}

}  // namespace heddle
