#include "trainers/data/data_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "core/io/atomic_file.h"

namespace heddle {
namespace {

void extend_by_size(FileDigest& digest, uint64_t size) {
  std::array<unsigned char, 8> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(size >> 8 * i);
  extend(digest, bytes.data(), bytes.size());
}

// By `blocks` blocks of the contents, or all of them where they are no longer than that.
void extend_by_contents(FileDigest& digest, const MappedFile& file, uint64_t blocks) {
  const uint64_t size = file.bytes().size();
  const bool is_whole = size / kDigestBlockBytes <= blocks;
  if (is_whole) blocks = (size + kDigestBlockBytes - 1) / kDigestBlockBytes;
  for (uint64_t i = 0; i < blocks; ++i) {
    // Spread, the last block ends with the file: (size - kDigestBlockBytes) i / (blocks - 1), for files of any size.
    const uint64_t last = size - kDigestBlockBytes, gaps = blocks - 1;
    const uint64_t begin = is_whole ? i * kDigestBlockBytes : last / gaps * i + last % gaps * i / gaps;
    const std::string_view block = file.bytes().substr(begin, kDigestBlockBytes);
    extend(digest, block.data(), block.size());
    file.release(block);
  }
}

}  // namespace

DataIdentity identify(std::span<const std::span<const MappedFile>> groups, uint64_t full_digest_bytes) {
  while (!groups.empty() && groups.back().empty()) groups = groups.first(groups.size() - 1);
  DataIdentity identity;
  for (const auto group : groups) {
    for (const MappedFile& file : group) identity.bytes += file.bytes().size();
    identity.files += static_cast<int64_t>(group.size());
  }
  if (identity.files == 0) return identity;
  const uint64_t blocks = identity.bytes <= full_digest_bytes
                              ? UINT64_MAX
                              : std::max<uint64_t>(2, kDigestBlocks / static_cast<uint64_t>(identity.files));
  FileDigest digest;
  for (size_t group = 0; group < groups.size(); ++group) {
    if (group > 0) extend_by_size(digest, 0);
    for (const MappedFile& file : groups[group]) {
      extend_by_size(digest, file.bytes().size());
      extend_by_contents(digest, file, blocks);
    }
  }
  identity.crc32 = digest.crc32;
  return identity;
}

DataIdentity identify(std::span<const MappedFile> files, std::span<const MappedFile> validation_files,
                      uint64_t full_digest_bytes) {
  const std::array<std::span<const MappedFile>, 2> groups = {files, validation_files};
  return identify(groups, full_digest_bytes);
}

std::string to_string(const DataIdentity& identity) {
  return fmt::format("{} file{} of {} bytes, crc32 {:08x}", identity.files, identity.files == 1 ? "" : "s",
                     identity.bytes, identity.crc32);
}

}  // namespace heddle
