// Event files of TensorBoard: records of a TFRecord file, each a message tensorflow.Event.        docs/watching.md
//
//   uint64 length | uint32 masked CRC-32C of the length | message | uint32 masked CRC-32C of the message
//
// all little-endian. Only the handful of fields that scalars and texts need is written. Sources: tensorflow/core/util/
// event.proto, tensorflow/core/framework/summary.proto, tensorflow/core/lib/io/record_writer.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/io/atomic_file.h"

namespace heddle {

// CRC-32C (Castagnoli) of the bytes; that of zlib has another polynomial.
uint32_t crc32c(std::string_view bytes);

// A number at one step, by its name in TensorBoard ("train/loss"). It is kept in single precision.
using EventScalar = std::pair<std::string, double>;

// A new file beside those that are there, with a name as TensorBoard expects it, after theirs in its order. `time` is
// in seconds since 1970. Events are kept until write() has written them. Throws Error naming the file.
class EventFile {
 public:
  // `folder` must be there. The file is created by the first write().
  EventFile(const std::filesystem::path& folder, double time);

  // The steps from `step` on begin anew: what other files of the folder hold of them is not shown any more.
  void start(double time, int64_t step);
  void scalars(double time, int64_t step, std::span<const EventScalar> scalars);
  // UTF-8, shown as Markdown.
  void text(double time, int64_t step, std::string_view name, std::string_view text);
  void write();

  const std::filesystem::path& path() const { return path_; }

 private:
  void add(double time, int64_t step, std::string_view what);

  std::filesystem::path path_;
  std::string records_;
  std::unique_ptr<AppendFile> file_;
};

}  // namespace heddle
