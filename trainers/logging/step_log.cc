#include "trainers/logging/step_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <system_error>
#include <utility>

#include "core/runtime/error.h"

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
  check_regular_file(path_);  // before steps are taken
  if (!event.checkpoint) return begin();
  std::error_code ignored;
  const bool same_run = fs::equivalent(event.checkpoint->parent_path(), path_.parent_path() / "checkpoints", ignored) &&
                        fs::exists(path_);
  go_on(same_run ? path_ : file_of_run(*event.checkpoint, path_.filename()), event.step);
}

// Nothing tells yet whether the lines are of another run, or of a start of this one that was cut off before its first
// checkpoint and whose lines are written again: then drop_before() takes the file away.
void StepLog::begin() {
  // A start that was cut off before it wrote anything may have left no file but what it kept.
  for (int number = 1; fs::exists(path_aside("before", number)); ++number) before_ = path_aside("before", number);
  if (!fs::is_regular_file(path_)) return;
  const std::string text = read_regular_file(path_);
  const Kept before = kept(text, INT64_MAX);
  if (before.last > 0 || before.damaged) keep_before(text);
  fs::remove(follow_links(path_));
}

// Where a file that was kept begins as the text does, the longer of them is enough.
void StepLog::keep_before(const std::string& text) {
  const std::string lines = without_times(text);
  bool is_kept = false;
  int number = 1;
  for (; fs::exists(path_aside("before", number)); ++number) {
    const std::string other = without_times(read_regular_file(path_aside("before", number)));
    is_kept = other.starts_with(lines);
    if (is_kept || lines.starts_with(other)) break;
  }
  before_ = path_aside("before", number);
  if (!is_kept) keep_as(*before_, "it belongs to an earlier start, of which there is no checkpoint");
}

// Takes away what was kept where this run has written the same lines. Once a line differs it never will, and the files
// are not read again.
void StepLog::drop_before() {
  if (!before_) return;
  const std::string before = fs::exists(*before_) ? without_times(read_regular_file(*before_)) : "";
  const std::string lines = without_times(read_regular_file(path_));
  if (before.size() > lines.size() && before.starts_with(lines)) return;
  if (lines.starts_with(before)) fs::remove(*before_);
  before_.reset();
}

// The text as every start of one run writes it.
std::string StepLog::without_times(const std::string& text) const {
  if (!format_.without_times) return text;
  std::string lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    lines += format_.without_times(std::string_view(text).substr(begin, end - begin));
    begin = end;
  }
  return lines;
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
  const std::string text = read_regular_file(from);
  const Kept found = kept(text, last_step);
  if (found.damaged && in_place) keep_aside("some of its rows are damaged", "damaged");
  // With logging.every a file may hold no line of the last step. Where it was larger before, the lines are far from
  // each other.
  const bool is_short =
      found.last < format_.logging.last_held(last_step) && last_step - found.last >= found.largest_gap;
  if (is_short || found.damaged) {
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
  int number = 1;
  while (fs::exists(path_aside(suffix, number))) ++number;
  keep_as(path_aside(suffix, number), reason);
}

void StepLog::keep_as(const fs::path& aside, const std::string& reason) {
  write_file(aside, read_regular_file(path_));
  note_(fmt::format("{} is kept as {}: {}", path_.string(), aside.filename().string(), reason));
}

// metrics.csv.before, metrics.csv.before.2 and so on.
fs::path StepLog::path_aside(const std::string& suffix, int number) const {
  const std::string first = path_.string() + "." + suffix;
  return number == 1 ? first : fmt::format("{}.{}", first, number);
}

void StepLog::flush() {
  if (!fs::exists(path_)) {
    write_file(path_, format_.header);
    file_.reset();
  }
  if (!file_) file_ = std::make_unique<AppendFile>(path_);
  file_->append(lines_);
  lines_.clear();
  drop_before();
}

}  // namespace heddle
