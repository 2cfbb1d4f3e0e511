#include "trainers/run/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

namespace heddle {
namespace {

namespace fs = std::filesystem;

// The first line in which two configs differ, for a message; "" when they are equal.
std::string first_difference(const std::string& now, const std::string& then) {
  std::istringstream now_lines(now), then_lines(then);
  for (std::string a, b;;) {
    const bool more_a = static_cast<bool>(std::getline(now_lines, a));
    const bool more_b = static_cast<bool>(std::getline(then_lines, b));
    if (!more_a && !more_b) return "";
    if (!more_a) a = "nothing";
    if (!more_b) b = "nothing";
    if (a != b)
      return fmt::format("now '{}', then '{}'", a.substr(a.find_first_not_of(' ')), b.substr(b.find_first_not_of(' ')));
  }
}

}  // namespace

RunFolder::RunFolder(fs::path path) : path_(std::move(path)) {
  check(!fs::exists(path_) || fs::is_directory(path_), "{} is a file, expected a run folder", path_.string());
  fs::create_directories(path_);
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // File systems that know no locks get none.
  if (lock_ >= 0 && ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    fail("another process is training in {}", path_.string());
  }
  remove_leftovers(path_);
  remove_leftovers(checkpoints());
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

std::optional<Checkpoint> RunFolder::choose(const std::string& resume, const std::string& config,
                                            const Note& note) const {
  const std::vector<CheckpointFolder> here = list_checkpoints(checkpoints());
  if (resume == "none") {
    if (here.empty()) return std::nullopt;
    throw UsageError(
        fmt::format("{} holds checkpoints up to step {}: go on with --resume auto, or start anew in another "
                    "folder with --out DIR",
                    path_.string(), here.back().step));
  }
  if (resume == "auto") {
    const auto checkpoint = newest_checkpoint(checkpoints(), note);
    if (!checkpoint) {
      check(here.empty(), "no checkpoint of {} is whole; start anew in another folder with --out DIR",
            checkpoints().string());
      return std::nullopt;
    }
    const std::string difference = first_difference(config, checkpoint->state.config);
    if (difference.empty()) return checkpoint;
    throw UsageError(
        fmt::format("the config is not the one that {} was made with: {}. Start anew in another folder with "
                    "--out DIR, or go on with the changed config by --resume {}",
                    checkpoint->path.string(), difference, path_.string()));
  }

  const Checkpoint checkpoint = find_checkpoint(resume, note);
  const fs::path its_folder = fs::canonical(checkpoint.path).parent_path();
  const bool same_run = fs::exists(checkpoints()) && fs::equivalent(its_folder, checkpoints());
  if (!here.empty() && !same_run) {
    throw UsageError(
        fmt::format("{} holds checkpoints of another run; give a fresh folder with --out DIR", path_.string()));
  }
  if (!here.empty() && here.back().step > checkpoint.state.step) {
    throw UsageError(fmt::format("{} holds later checkpoints, up to step {}; give a fresh folder with --out DIR",
                                 path_.string(), here.back().step));
  }
  const std::string difference = first_difference(config, checkpoint.state.config);
  if (!difference.empty()) {
    note(fmt::format("the config is not the one that {} was made with: {}", checkpoint.path.string(), difference));
  }
  return checkpoint;
}

}  // namespace heddle
