#include "trainers/run/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "core/runtime/error.h"
#include "trainers/run/checkpoint_config.h"

namespace heddle {

namespace fs = std::filesystem;

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

std::optional<Checkpoint> RunFolder::choose(const std::string& resume, const TrainConfig& config,
                                            const Registry& registry, const Note& note) const {
  if (resume == "auto") return choose_newest(config, registry, note);
  if (resume != "none") return choose_path(resume, config, registry, note);
  const std::vector<CheckpointFolder> here = list_checkpoints(checkpoints());
  if (here.empty()) return std::nullopt;
  throw UsageError(
      fmt::format("{} holds checkpoints up to step {}: go on with --resume auto, or start anew in another "
                  "folder with --out DIR",
                  path_.string(), here.back().step));
}

std::optional<Checkpoint> RunFolder::choose_newest(const TrainConfig& config, const Registry& registry,
                                                   const Note& note) const {
  const auto checkpoint = newest_checkpoint(checkpoints(), note);
  if (!checkpoint) {
    check(list_checkpoints(checkpoints()).empty(),
          "no checkpoint of {} is whole; start anew in another folder with --out DIR", checkpoints().string());
    return std::nullopt;
  }
  const std::string difference = config_difference(config, *checkpoint, registry);
  if (difference.empty()) return checkpoint;
  throw UsageError(
      fmt::format("the config is not the one that {} was made with: {}. Start anew in another folder with "
                  "--out DIR, or go on with the changed config by --resume {}",
                  checkpoint->path.string(), difference, path_.string()));
}

Checkpoint RunFolder::choose_path(const std::string& resume, const TrainConfig& config, const Registry& registry,
                                  const Note& note) const {
  const std::vector<CheckpointFolder> here = list_checkpoints(checkpoints());
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
  try {
    const std::string difference = config_difference(config, checkpoint, registry);
    if (!difference.empty()) {
      note(fmt::format("the config is not the one that {} was made with: {}", checkpoint.path.string(), difference));
    }
  } catch (const ConfigError& error) {  // the checkpoint may have layers that this program does not know
    note(fmt::format("the config is not the one that {} was made with, which cannot be read: {}",
                     checkpoint.path.string(), error.what()));
  }
  return checkpoint;
}

}  // namespace heddle
