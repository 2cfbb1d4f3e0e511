#include "core/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include "core/io/json_text.h"
#include "core/runtime/error.h"
#include "core/runtime/utf8.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference implementation
constexpr const char* kMetadataKey = "__metadata__";

struct DTypeName {
  DType dtype;
  std::string_view name;
};
constexpr std::array<DTypeName, 6> kDTypeNames = {{{DType::float64, "F64"},
                                                   {DType::float32, "F32"},
                                                   {DType::bfloat16, "BF16"},
                                                   {DType::float16, "F16"},
                                                   {DType::int32, "I32"},
                                                   {DType::int64, "I64"}}};

std::string_view safetensors_name(DType dtype) {
  return std::find_if(kDTypeNames.begin(), kDTypeNames.end(), [&](const DTypeName& row) { return row.dtype == dtype; })
      ->name;
}

// JSON text as a value. nlohmann-json keeps the last of two equal keys; here they are an error.
Json parse_header(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto check_keys = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      check(keys.back().insert(key).second, "{}: the header names '{}' twice", path, key);
    }
    return true;
  };
  try {
    return Json::parse(text, check_keys);
  } catch (const Json::exception& error) {
    fail("{}: the header is not JSON: {}", path, error.what());
  }
}

// The bytes of a tensor of this shape; false when the number does not fit.
bool byte_count(const Shape& shape, DType dtype, uint64_t& bytes) {
  int64_t product = static_cast<int64_t>(size_of(dtype));
  for (int64_t extent : shape) {
    if (__builtin_mul_overflow(product, extent, &product)) return false;
  }
  bytes = static_cast<uint64_t>(product);
  return true;
}

SafetensorsEntry parse_entry(const std::string& name, const Json& json, const std::string& path) {
  const auto refuse = [&](const std::string& what) { fail("{}: tensor '{}': {}", path, name, what); };
  if (!json.is_object()) refuse(fmt::format("found {}, expected an object", json.type_name()));
  for (const auto& [key, value] : json.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") refuse(fmt::format("unknown key '{}'", key));
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!json.contains(key)) refuse(fmt::format("'{}' is missing", key));
  }
  SafetensorsEntry entry;
  entry.name = name;

  const Json& dtype = json["dtype"];
  const auto row = std::find_if(kDTypeNames.begin(), kDTypeNames.end(),
                                [&](const DTypeName& known) { return dtype.is_string() && dtype == known.name; });
  if (row == kDTypeNames.end()) {
    refuse(fmt::format("unknown dtype {}, expected one of F64, F32, BF16, F16, I32, I64", dtype.dump()));
  }
  entry.dtype = row->dtype;

  const Json& shape = json["shape"];
  if (!shape.is_array()) refuse(fmt::format("shape is {}, expected a list", shape.dump()));
  if (shape.size() > kMaxRank) {
    refuse(fmt::format("shape has {} dimensions, expected at most {}", shape.size(), kMaxRank));
  }
  for (const Json& extent : shape) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      refuse(fmt::format("shape is {}, expected non-negative integers", shape.dump()));
    }
    entry.shape.append(extent.get<int64_t>());
  }

  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    refuse(fmt::format("data_offsets is {}, expected two non-negative integers", offsets.dump()));
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  uint64_t bytes = 0;
  if (!byte_count(entry.shape, entry.dtype, bytes)) refuse(fmt::format("shape {} is too large", shape.dump()));
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    refuse(fmt::format("data_offsets [{}, {}] do not hold {} {} of {} bytes", entry.begin, entry.end,
                       safetensors_name(entry.dtype), to_string(entry.shape), bytes));
  }
  return entry;
}

}  // namespace

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> items,
                             const std::function<const void*(size_t)>& data_of, const SafetensorsMetadata& metadata) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // Wide elements first: every tensor is then aligned to its element size.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return size_of(items[a].dtype) > size_of(items[b].dtype); });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t position = 0;
  std::vector<uint64_t> bytes(items.size());
  for (size_t i : order) {
    const HostTensor& item = items[i];
    check(item.name != kMetadataKey && !header.contains(item.name), "{}: two tensors are called '{}'", path.string(),
          item.name);
    check(valid_utf8(item.name) == item.name, "{}: the name of tensor '{}' is no UTF-8", path.string(), item.name);
    check(byte_count(item.shape, item.dtype, bytes[i]), "{}: tensor '{}' is too large", path.string(), item.name);
    header[item.name] = {{"dtype", safetensors_name(item.dtype)},
                         {"shape", std::vector<int64_t>(item.shape.begin(), item.shape.end())},
                         {"data_offsets", {position, position + bytes[i]}}};
    position += bytes[i];
  }
  std::string text = json_text(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  check(length <= kMaxHeader, "{}: a header of {} bytes, more than the {} allowed", path.string(), length, kMaxHeader);

  AtomicFile file(path);
  file.write(&length, sizeof(length));
  file.write(text.data(), text.size());
  for (size_t i : order) file.write(data_of(i), bytes[i]);
  return file.commit();
}

SafetensorsReader::SafetensorsReader(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code unreadable;  // read_file() says so
  if (std::filesystem::is_regular_file(path_, unreadable)) {
    file_ = std::make_unique<std::ifstream>(path_, std::ios::binary);
    check(file_->good(), "cannot open {}: {}", path_.string(), std::generic_category().message(errno));
    file_bytes_ = std::filesystem::file_size(path_);
  } else {  // tensors are read in any order, and a pipe has one
    std::string bytes = read_file(path_);
    file_bytes_ = bytes.size();
    file_ = std::make_unique<std::istringstream>(std::move(bytes));
  }
  read_header();
}

void SafetensorsReader::read_header() {
  const std::string path = path_.string();
  uint64_t length = 0;
  check(file_bytes_ >= sizeof(length), "{}: truncated: {} bytes, expected at least 8", path, file_bytes_);
  file_->read(reinterpret_cast<char*>(&length), sizeof(length));
  check(length <= kMaxHeader, "{}: the header length is {}, more than the {} allowed: not a safetensors file", path,
        length, kMaxHeader);
  check(length <= file_bytes_ - sizeof(length), "{}: truncated: the header has {} bytes, the file {}", path, length,
        file_bytes_);
  std::string text(length, '\0');
  file_->read(text.data(), static_cast<std::streamsize>(length));
  check(file_->good(), "cannot read {}", path);
  data_start_ = sizeof(length) + length;
  check(text.starts_with('{'), "{}: the header does not start with '{{': not a safetensors file", path);

  const Json header = parse_header(text, path);
  for (const auto& [name, value] : header.items()) {
    if (name != kMetadataKey) {
      entries_.push_back(parse_entry(name, value, path));
      continue;
    }
    check(value.is_object(), "{}: {} is {}, expected a map of texts", path, kMetadataKey, value.type_name());
    for (const auto& [key, text_value] : value.items()) {
      check(text_value.is_string(), "{}: {}.{} is {}, expected a text", path, kMetadataKey, key,
            text_value.type_name());
      metadata_[key] = text_value.get<std::string>();
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_layout(file_bytes_ - data_start_);
}

void SafetensorsReader::check_layout(uint64_t data_bytes) {
  const std::string path = path_.string();
  uint64_t position = 0;
  for (const SafetensorsEntry& entry : entries_) {
    check(entry.begin >= position, "{}: tensor '{}' begins at byte {} of the data and overlaps the one before it", path,
          entry.name, entry.begin);
    check(entry.begin == position, "{}: bytes {} to {} of the data belong to no tensor", path, position, entry.begin);
    check(entry.end <= data_bytes, "{}: truncated: tensor '{}' ends at byte {} of the data, the file holds {}", path,
          entry.name, entry.end, data_bytes);
    position = entry.end;
  }
  check(position == data_bytes, "{}: {} trailing bytes after the last tensor", path, data_bytes - position);
}

const SafetensorsEntry* SafetensorsReader::find(std::string_view name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

const SafetensorsEntry& SafetensorsReader::at(std::string_view name) const {
  if (const SafetensorsEntry* entry = find(name)) return *entry;
  std::string names;
  for (const SafetensorsEntry& entry : entries_) names += (names.empty() ? "" : ", ") + entry.name;
  fail("{}: no tensor '{}', found: {}", path_.string(), name, names.empty() ? "none" : names);
}

void SafetensorsReader::read(const SafetensorsEntry& entry, void* host) {
  read_bytes(entry, 0, entry.end - entry.begin, host);
}

void SafetensorsReader::read_bytes(const SafetensorsEntry& entry, uint64_t begin, uint64_t bytes, void* host) {
  file_->clear();
  file_->seekg(static_cast<std::streamoff>(data_start_ + entry.begin + begin));
  file_->read(static_cast<char*>(host), static_cast<std::streamsize>(bytes));
  check(!file_->fail(), "cannot read tensor '{}' of {}", entry.name, path_.string());
}

Tensor SafetensorsReader::read(Context& context, const SafetensorsEntry& entry) {
  Tensor tensor = Tensor::empty(context, entry.shape, entry.dtype);
  read(context, entry, tensor);
  return tensor;
}

void SafetensorsReader::read(Context& context, const SafetensorsEntry& entry, const Tensor& tensor) {
  check(entry.dtype == tensor.dtype() && entry.shape == tensor.shape(), "{}: tensor '{}' is {} {}, expected {} {}",
        path_.string(), entry.name, heddle::name(entry.dtype), entry.shape, heddle::name(tensor.dtype()),
        tensor.shape());
  if (context.is_meta()) return;
  std::vector<char> host(entry.end - entry.begin);
  read(entry, host.data());
  copy_from_host(context, tensor, host.data());
  context.synchronize();
}

void SafetensorsReader::read_part(Context& context, const SafetensorsEntry& entry, int64_t first, const Tensor& part) {
  check(entry.dtype == part.dtype() && first >= 0 && first + part.numel() <= numel(entry.shape),
        "{}: tensor '{}' is {} {}, expected {} with the elements {} to {}", path_.string(), entry.name,
        heddle::name(entry.dtype), entry.shape, heddle::name(part.dtype()), first, first + part.numel());
  if (context.is_meta()) return;
  const uint64_t element = size_of(entry.dtype);
  std::vector<char> host(static_cast<size_t>(part.numel()) * element);
  read_bytes(entry, static_cast<uint64_t>(first) * element, host.size(), host.data());
  copy_from_host(context, part, host.data());
  context.synchronize();
}

FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors,
                             const SafetensorsMetadata& metadata) {
  return write_safetensors(
      path, tensors, [&](size_t i) { return tensors[i].data; }, metadata);
}

FileDigest write_safetensors(Context& context, const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                             const SafetensorsMetadata& metadata) {
  std::vector<HostTensor> items;
  for (const NamedTensor& named : tensors) {
    items.push_back({named.name, named.tensor.dtype(), named.tensor.shape(), nullptr});
  }
  std::vector<char> host;
  const auto data_of = [&](size_t i) {
    const Tensor& tensor = tensors[i].tensor;
    host.resize(static_cast<size_t>(tensor.numel()) * size_of(tensor.dtype()));
    copy_to_host(context, tensor, host.data());
    return host.data();
  };
  return write_safetensors(path, items, data_of, metadata);
}

}  // namespace heddle
