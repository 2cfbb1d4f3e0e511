// A folder for what is not kept.
#pragma once

#include <filesystem>
#include <string>

namespace heddle {

// A new folder in TMPDIR, or in /tmp where that is not set; its destructor removes it with all that is in it.
class TemporaryFolder {
 public:
  // `name` says in the name of the folder what made it: /tmp/heddle_NAME_x4f2Kq. Throws Error, which
  // names TMPDIR, where no folder can be made.
  explicit TemporaryFolder(const std::string& name);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace heddle
