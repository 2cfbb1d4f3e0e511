#include "trainers/logging/step_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <system_error>
#include <utility>

namespace heddle {
namespace {

namespace fs = std::filesystem;

// The file of this name of the run that a checkpoint RUN/checkpoints/step_N belongs to. Where checkpoints is a symbolic
// link, it lies beside the link.
fs::path file_of_run(const fs::path& checkpoint, const fs::path& name) {
  fs::path named = fs::absolute(checkpoint).lexically_normal();
  if (!named.has_filename()) named = named.parent_path();  // it was given as "step_N/"
  named = named.parent_path().parent_path() / name;
  if (fs::exists(named)) return named;
  return fs::canonical(checkpoint).parent_path().parent_path() / name;
}

}  // namespace

// What of the text of a file are lines of steps up to a last one, none earlier than the one before it.
struct StepLog::Kept {
  std::string text;
  int64_t last = 0;         // step of the last line
  int64_t largest_gap = 0;  // between the steps of two neighbours
  bool damaged = false;     // something else stood between them
};

StepLog::Kept StepLog::kept(std::string_view text, int64_t last_step) const {
  Kept kept{.text = format_.header};
  const bool is_other = !format_.other_header.empty() && text.starts_with(format_.other_header);
  const std::string& header = is_other ? format_.other_header : format_.header;
  kept.damaged = !text.starts_with(header);
  for (size_t begin = kept.damaged ? 0 : header.size(); begin < text.size();) {
    if (kept.last == last_step && (format_.is_one_line_a_step || text.find('\n', begin) == std::string_view::npos)) {
      break;  // nothing more is wanted: what follows may be half a line
    }
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    const std::string_view line = text.substr(begin, end - begin);
    begin = end;
    const int64_t step = line.ends_with('\n') ? format_.step_of(line) : -1;
    const int64_t first = format_.is_one_line_a_step ? kept.last + 1 : kept.last;
    if (step >= first && step <= last_step) {
      kept.text += is_other ? format_.converted(line) : std::string(line);
      kept.largest_gap = std::max(kept.largest_gap, step - kept.last);
      kept.last = step;
    } else {
      kept.damaged = kept.damaged || step < first;
    }
  }
  return kept;
}

StepLog::StepLog(fs::path path, StepLogFormat format, Note note)
    : path_(std::move(path)), format_(std::move(format)), note_(std::move(note)) {}

void StepLog::start(const StartEvent& event) {
  if (!event.checkpoint) return begin(event);
  std::error_code ignored;
  const bool same_run = fs::equivalent(event.checkpoint->parent_path(), path_.parent_path() / "checkpoints", ignored) &&
                        fs::exists(path_);
  go_on(same_run ? path_ : file_of_run(*event.checkpoint, path_.filename()), event.step);
}

// A start that was cut off before its first checkpoint may have left lines, which this one writes again. More lines
// than that are of a run whose checkpoints are gone.
void StepLog::begin(const StartEvent& event) {
  if (!fs::exists(path_)) return;
  const Kept before = kept(read_file(path_), INT64_MAX);
  const int64_t first_checkpoint = event.checkpoint_every > 0 ? event.checkpoint_every : event.steps;
  if (before.last > first_checkpoint || before.damaged) {
    keep_aside("it belongs to an earlier run, of which there is no checkpoint", "before");
  }
  fs::remove(path_);
}

void StepLog::go_on(const fs::path& from, int64_t last_step) {
  std::error_code ignored;
  const bool in_place = fs::equivalent(from, path_, ignored);
  if (!in_place && fs::exists(path_)) keep_aside("it belongs to another run", "before");
  if (!fs::exists(from)) {
    if (last_step > 0) note_(fmt::format("{} is missing; the rows up to step {} are lost", from.string(), last_step));
    write_file(path_, format_.header);
    return;
  }
  const std::string text = read_file(from);
  const Kept found = kept(text, last_step);
  if (found.damaged && in_place) keep_aside("some of its rows are damaged", "damaged");
  // With logging.every a file holds no line of the last step; then its lines are as far from each other.
  const int64_t missing = last_step - found.last;
  if ((missing > 0 && missing >= found.largest_gap) || found.damaged) {
    note_(fmt::format("{}: rows before step {} are missing or damaged, and the others are kept", from.string(),
                      last_step + 1));
  }
  if (in_place && text.starts_with(found.text)) {
    fs::resize_file(path_, found.text.size());
  } else {
    write_file(path_, found.text);
  }
}

void StepLog::keep_aside(const std::string& reason, const std::string& suffix) {
  fs::path aside = path_.string() + "." + suffix;
  for (int number = 2; fs::exists(aside); ++number) aside = fmt::format("{}.{}.{}", path_.string(), suffix, number);
  write_file(aside, read_file(path_));
  note_(fmt::format("{} is kept as {}: {}", path_.string(), aside.filename().string(), reason));
}

void StepLog::flush() {
  if (!fs::exists(path_)) {
    write_file(path_, format_.header);
    file_.reset();
  }
  if (!file_) file_ = std::make_unique<AppendFile>(path_);
  file_->append(lines_);
  lines_.clear();
}

}  // namespace heddle
