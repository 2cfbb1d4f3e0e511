// The safetensors format: 8 bytes little-endian header length, a JSON header, raw little-endian data.
// Source: https://huggingface.co/docs/safetensors (format), read strictly: everything that does not follow it is
// refused with a reason. dtypes: F64 F32 BF16 F16 I32 I64. All functions throw Error naming the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <istream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/tensor/tensor.h"

namespace heddle {

using SafetensorsMetadata = std::map<std::string, std::string>;

// One tensor of a file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes, counted from the end of the header
};

class SafetensorsReader {
 public:
  // Reads and checks the header; data is read on demand, and none of it for a tensor on meta. What is no regular file
  // (a pipe) is read to its end.
  explicit SafetensorsReader(std::filesystem::path path);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order of their data
  const SafetensorsMetadata& metadata() const { return metadata_; }
  const SafetensorsEntry* find(std::string_view name) const;  // nullptr: not there
  const SafetensorsEntry& at(std::string_view name) const;    // an Error listing the names that are there

  // end - begin bytes.
  void read(const SafetensorsEntry& entry, void* host);
  // A new tensor of the entry's dtype and shape.
  Tensor read(Context& context, const SafetensorsEntry& entry);
  // Into a contiguous tensor of the same dtype and shape.
  void read(Context& context, const SafetensorsEntry& entry, const Tensor& tensor);
  // The elements from number `first` on, row-major, into a contiguous tensor of the same dtype that has as many.
  void read_part(Context& context, const SafetensorsEntry& entry, int64_t first, const Tensor& part);

 private:
  void read_bytes(const SafetensorsEntry& entry, uint64_t begin, uint64_t bytes, void* host);
  void read_header();
  void check_layout(uint64_t data_bytes);

  std::filesystem::path path_;
  std::unique_ptr<std::istream> file_;
  uint64_t file_bytes_ = 0, data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  SafetensorsMetadata metadata_;
};

// Data in host memory, numel(shape) elements in row-major order.
struct HostTensor {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;
  const void* data = nullptr;
};
struct NamedTensor {
  std::string name;
  Tensor tensor;  // contiguous
};

// Written atomically.
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors,
                             const SafetensorsMetadata& metadata = {});
FileDigest write_safetensors(Context& context, const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                             const SafetensorsMetadata& metadata = {});
// `data_of(i)` gives the data of tensor i, valid until the next call, in place of HostTensor::data. It is called once
// for each, in the order of the tensors when they have one dtype.
FileDigest write_safetensors(const std::filesystem::path& path, std::span<const HostTensor> tensors,
                             const std::function<const void*(size_t)>& data_of,
                             const SafetensorsMetadata& metadata = {});

}  // namespace heddle
