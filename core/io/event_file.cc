#include "core/io/event_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <utility>

namespace heddle {
namespace {

namespace fs = std::filesystem;

// The numbers of the fields in their messages.
enum EventField { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SummaryField { kValue = 1 };
enum ValueField { kTag = 1, kSimpleValue = 2, kTensor = 8, kMetadata = 9 };
enum TensorField { kDtype = 1, kTensorShape = 2, kStringValue = 8 };
enum MetadataField { kPluginData = 1 };
enum PluginDataField { kPluginName = 1 };
enum SessionLogField { kStatus = 1 };
constexpr uint64_t kDtypeString = 7, kStatusStart = 1;

// The types of fields on the wire.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

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
std::string number(int field, uint64_t value) { return tag(field, kVarint) + varint(value); }
std::string number(int field, double value) {
  return tag(field, kFixed64) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string number(int field, float value) {
  return tag(field, kFixed32) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes(int field, std::string_view contents) {
  return tag(field, kBytes) + varint(contents.size()) + std::string(contents);
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

// events.out.tfevents.TIME.HOST.PROCESS.NUMBER, of which only the beginning has a meaning for readers.
fs::path new_path(const fs::path& folder, double time) {
  fs::path path;
  int number = 0;
  do {
    path = folder / fmt::format("events.out.tfevents.{:010d}.{}.{}.{}", std::llround(std::floor(time)), host_name(),
                                ::getpid(), number++);
  } while (fs::exists(path));
  return path;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> table = crc_table();
  uint32_t crc = ~0u;
  for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  return ~crc;
}

EventFile::EventFile(const fs::path& folder, double time) : path_(new_path(folder, time)) {
  records_ = record(number(kWallTime, time) + bytes(kFileVersion, "brain.Event:2"));
}

void EventFile::add(double time, int64_t step, std::string_view what) {
  records_ += record(number(kWallTime, time) + number(kStep, static_cast<uint64_t>(step)) + std::string(what));
}

void EventFile::start(double time, int64_t step) { add(time, step, bytes(kSessionLog, number(kStatus, kStatusStart))); }

void EventFile::scalars(double time, int64_t step, std::span<const EventScalar> scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars) {
    summary += bytes(kValue, bytes(kTag, name) + number(kSimpleValue, static_cast<float>(value)));
  }
  add(time, step, bytes(kSummary, summary));
}

void EventFile::text(double time, int64_t step, std::string_view name, std::string_view text) {
  const std::string tensor = number(kDtype, kDtypeString) + bytes(kTensorShape, "") + bytes(kStringValue, text);
  const std::string metadata = bytes(kPluginData, bytes(kPluginName, "text"));
  add(time, step,
      bytes(kSummary, bytes(kValue, bytes(kTag, name) + bytes(kTensor, tensor) + bytes(kMetadata, metadata))));
}

void EventFile::write() {
  if (!file_) file_ = std::make_unique<AppendFile>(path_);
  file_->append(std::exchange(records_, {}));
}

}  // namespace heddle
