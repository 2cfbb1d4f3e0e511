#include "core/io/temporary_folder.h"

#include <stdlib.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "core/runtime/error.h"

namespace heddle {

TemporaryFolder::TemporaryFolder(const std::string& name) {
  const char* given = std::getenv("TMPDIR");
  const bool is_given = given != nullptr && *given != '\0';
  const std::filesystem::path parent = is_given ? given : "/tmp";
  std::string path = (parent / ("heddle_" + name + "_XXXXXX")).string();
  if (::mkdtemp(path.data()) == nullptr) {
    fail("no folder can be made in {}, {}: {}; set TMPDIR to a folder for temporary files", parent.string(),
         is_given ? "which TMPDIR names" : "where TMPDIR is not set", std::strerror(errno));
  }
  path_ = path;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace heddle
