#include "trainers/run/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/shell_argument.h"

namespace heddle {

namespace fs = std::filesystem;

namespace {

constexpr const char* kConfigFile = "config.yaml";
// The first line of a config.yaml that a run has written.
constexpr std::string_view kConfigHeader = "# The resolved config of this run. heddle replaces this file.\n";

// What is in a folder, as far as it can be read.
template <class Iterator>
std::vector<fs::directory_entry> readable_entries(const fs::path& folder) {
  std::vector<fs::directory_entry> entries;
  std::error_code unreadable;
  Iterator entry(folder, fs::directory_options::skip_permission_denied, unreadable);
  for (; entry != Iterator(); entry.increment(unreadable)) entries.push_back(*entry);
  return entries;
}

bool is_written_by_a_run(const fs::path& config) { return read_regular_file(config).starts_with(kConfigHeader); }

// What an optimizer of one type keeps of its steps means nothing to another.
void check_optimizer(const RunSubject& subject, const Checkpoint& checkpoint) {
  const OptimizerType now = subject.config.optimizer.type;
  const OptimizerType then = read_checkpoint_config(checkpoint, {}, subject.registry).optimizer.type;
  if (now == then) return;
  throw UsageError(fmt::format(
      "optimizer.type is {}, but {} was trained with {}, whose state {} cannot go on with. Keep {}, or start "
      "a new run from these weights by --init-from {}",
      name(now), checkpoint.path.string(), name(then), name(now), name(then),
      shell_argument(checkpoint.path.string())));
}

}  // namespace

std::optional<fs::path> run_folder_of(const fs::path& config) {
  if (config.filename() != kConfigFile || !fs::is_regular_file(config)) return std::nullopt;
  const fs::path folder = config.has_parent_path() ? config.parent_path() : fs::path(".");
  const bool is_run = is_written_by_a_run(config) || !list_checkpoints(folder / "checkpoints").empty();
  return is_run ? std::optional(folder) : std::nullopt;
}

std::vector<fs::path> run_files(const fs::path& folder) {
  const fs::path checkpoints = folder / "checkpoints";
  std::vector<fs::path> files = {checkpoints};
  for (const char* name : {kConfigFile, kTokenizerFile, "metrics.csv", "log.jsonl", "out_of_memory.pickle"}) {
    files.push_back(folder / name);
  }
  for (const auto& entry : readable_entries<fs::directory_iterator>(folder)) {
    if (entry.path().filename().string().starts_with("events.out.tfevents.")) files.push_back(entry.path());
  }
  std::error_code unreadable;
  for (const auto& entry : readable_entries<fs::recursive_directory_iterator>(checkpoints)) {
    if (entry.symlink_status(unreadable).type() == fs::file_type::regular) files.push_back(entry.path());
  }
  return files;
}

RunFolder::RunFolder(fs::path path, Access access) : path_(std::move(path)) {
  if (fs::exists(path_) && !fs::is_directory(path_)) {
    throw UsageError(fmt::format("{} is a file, expected a run folder", path_.string()));
  }
  check_leads_to_a_folder(path_);
  if (access == Access::read) return;
  is_new_ = fs::create_directories(path_);
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // File systems that know no locks get none.
  if (lock_ >= 0 && ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    fail("another process is training in {}", path_.string());
  }
  for (const fs::path& file : {config(), tokenizer()}) fs::remove(partial_path(file));  // of a process that was killed
  remove_leftovers(checkpoints());
}

RunFolder::~RunFolder() {
  std::error_code ignored;
  if (is_new_) fs::remove(path_, ignored);  // what holds something stays
  if (lock_ >= 0) ::close(lock_);
}

void RunFolder::check_config() const {
  if (!fs::exists(config()) || is_written_by_a_run(config()) || !list_checkpoints(checkpoints()).empty()) return;
  throw UsageError(fmt::format("{} was not written by a run and would be replaced; give another folder with --out DIR",
                               config().string()));
}

void RunFolder::write_config(const std::string& yaml) const {
  check_config();
  const std::string text = std::string(kConfigHeader) + yaml;
  if (!fs::exists(config()) || read_regular_file(config()) != text) write_file(config(), text);
}

void RunFolder::check_tokenizer(const RunSubject& subject) const {
  const auto identity = tokenizer_identity(subject.config.data, subject.tokenizer);
  if (!identity || !fs::exists(tokenizer())) return;
  check_regular_file(tokenizer());
  const FileDigest here = digest_file(tokenizer());
  if (here == identity->digest) return;
  throw UsageError(
      fmt::format("{}, which keeps the tokenizer of a run, is not {}, and is never replaced; give another "
                  "folder with --out DIR",
                  to_string(TokenizerIdentity{tokenizer().string(), here}), to_string(*identity)));
}

void RunFolder::write_tokenizer(const RunSubject& subject) const {
  check_tokenizer(subject);
  if (!tokenizer_identity(subject.config.data, subject.tokenizer) || fs::exists(tokenizer())) return;
  write_file(tokenizer(), subject.tokenizer->model());
}

std::optional<Checkpoint> RunFolder::choose(const std::string& resume, const RunSubject& subject,
                                            const Note& note) const {
  if (resume == "auto") return choose_newest(subject, note);
  if (resume != "none") return choose_path(resume, subject, note);
  const std::vector<CheckpointFolder> here = list_checkpoints(checkpoints());
  if (here.empty()) return std::nullopt;
  throw UsageError(
      fmt::format("{} holds checkpoints up to step {}: go on with --resume auto, or start anew in another "
                  "folder with --out DIR",
                  path_.string(), here.back().step));
}

std::optional<Checkpoint> RunFolder::choose_together(Processes& processes, const std::string& resume,
                                                     const RunSubject& subject, const Note& note) const {
  std::optional<Checkpoint> checkpoint = processes.together([&]() -> std::optional<Checkpoint> {
    if (!processes.is_first()) return std::nullopt;
    check_config();
    auto chosen = choose(resume, subject, note);
    check_tokenizer(subject);
    return chosen;
  });
  if (processes.count() == 1) return checkpoint;
  const std::string path = processes.from_first(checkpoint ? checkpoint->path.string() : "");
  return processes.together([&] {
    if (!checkpoint && !path.empty()) checkpoint = open_checkpoint(path);
    return checkpoint;
  });
}

std::optional<Checkpoint> RunFolder::choose_newest(const RunSubject& subject, const Note& note) const {
  const auto checkpoint = newest_checkpoint(checkpoints(), note);
  if (!checkpoint) {
    check(list_checkpoints(checkpoints()).empty(),
          "no checkpoint of {} is whole; start anew in another folder with --out DIR", checkpoints().string());
    return std::nullopt;
  }
  heddle::check_tokenizer(subject.config.data, subject.tokenizer, *checkpoint);
  std::string difference = config_difference(subject.config, *checkpoint, subject.registry,
                                             tokenizer_identity(subject.config.data, subject.tokenizer));
  if (!difference.empty()) {
    difference =
        fmt::format("the config is not the one that {} was made with: {}", checkpoint->path.string(), difference);
  } else {
    difference = data_difference(subject.data, *checkpoint);
  }
  if (difference.empty()) return checkpoint;
  throw UsageError(fmt::format("{}. Start anew in another folder with --out DIR, or go on nevertheless by --resume {}",
                               difference, shell_argument(path_.string())));
}

Checkpoint RunFolder::choose_path(const std::string& resume, const RunSubject& subject, const Note& note) const {
  const std::vector<CheckpointFolder> here = list_checkpoints(checkpoints());
  const Checkpoint checkpoint = find_checkpoint(resume, note);
  if (!here.empty() && !is_in_folder(checkpoint, checkpoints())) {
    throw UsageError(
        fmt::format("{} holds checkpoints of another run; give a fresh folder with --out DIR", path_.string()));
  }
  if (!here.empty() && here.back().step > checkpoint.state.step) {
    const auto newest = newest_checkpoint(checkpoints(), [](const std::string&) {});  // damaged ones do not count
    if (newest && newest->state.step > checkpoint.state.step) {
      throw UsageError(fmt::format("{} holds later checkpoints, up to step {}; give a fresh folder with --out DIR",
                                   path_.string(), newest->state.step));
    }
  }
  heddle::check_tokenizer(subject.config.data, subject.tokenizer, checkpoint);
  try {
    check_optimizer(subject, checkpoint);
    const std::string difference = config_difference(subject.config, checkpoint, subject.registry,
                                                     tokenizer_identity(subject.config.data, subject.tokenizer));
    if (!difference.empty()) {
      note(fmt::format("the config is not the one that {} was made with: {}", checkpoint.path.string(), difference));
    }
  } catch (const ConfigError& error) {  // the checkpoint may have layers that this program does not know
    note(fmt::format("the config is not the one that {} was made with, which cannot be read: {}",
                     checkpoint.path.string(), error.what()));
  }
  if (const std::string difference = data_difference(subject.data, checkpoint); !difference.empty()) note(difference);
  return checkpoint;
}

}  // namespace heddle
