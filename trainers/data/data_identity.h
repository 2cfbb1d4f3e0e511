// What tells the files of a data set from others.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/io/mapped_file.h"

namespace heddle {

// Two data sets with the same identity hold the same data. Generated data are made from the seed and the config alone
// and have an identity of zeros.
struct DataIdentity {
  int64_t files = 0;
  uint64_t bytes = 0;  // of all files together
  uint32_t crc32 = 0;  // of the files in their order, each as its size (8 bytes, little-endian) and its contents
  bool operator==(const DataIdentity&) const = default;
};

// Up to this many bytes together all contents are digested, which takes about a second a GiB; beyond, of each file
// kDigestBlocks / files blocks (at least two), spread evenly from its first byte to its last.
inline constexpr uint64_t kFullDigestBytes = uint64_t{4} << 30;
inline constexpr uint64_t kDigestBlocks = 4096;
inline constexpr uint64_t kDigestBlockBytes = uint64_t{64} << 10;

// The identity of groups of files: those of each source, then those of data.validation_path, then the tokenizer's. In
// the digest there is a size of 0 before each group but the first. Groups without files at the end count for nothing.
DataIdentity identify(std::span<const std::span<const MappedFile>> groups,
                      uint64_t full_digest_bytes = kFullDigestBytes);
// That of one group, and of a second.
DataIdentity identify(std::span<const MappedFile> files, std::span<const MappedFile> validation_files = {},
                      uint64_t full_digest_bytes = kFullDigestBytes);

// "2 files of 1234 bytes, crc32 0089abcd".
std::string to_string(const DataIdentity& identity);

}  // namespace heddle
