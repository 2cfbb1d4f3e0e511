// A file of lines that grows with a run, each of which belongs to a step: metrics.csv, log.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/io/atomic_file.h"
#include "trainers/logging/logger.h"
#include "trainers/logging/logging_config.h"
#include "trainers/logging/note.h"

namespace heddle {

struct StepLogFormat {
  std::string header;  // the first line, with its line break; empty: there is none
  // The step of a whole line with its line break; negative when it is no line of such a file.
  std::function<int64_t(std::string_view line)> step_of;
  bool is_one_line_a_step = false;  // else several lines may have one step
  // The first line of a file of another form, whose lines converted() brings into this one; empty: there is none.
  std::string other_header = {};
  std::function<std::string(std::string_view line)> converted = {};
  LoggingConfig logging = {};  // of which steps there are lines
  // A line as every start of one run writes it; empty: all of it is the same.
  std::function<std::string(std::string_view line)> without_times = {};
};

// flush() appends the lines since the last one, so the time of a save does not grow with the length of the run.
//
// A run that continues from a checkpoint RUN/checkpoints/step_N goes on with the lines of the file of this name in RUN
// up to step N; those after it are made anew. What cannot be read as lines is kept beside the file as NAME.damaged and
// noted, and a file with steps that a run from the beginning would replace as NAME.before.
class StepLog {
 public:
  StepLog(std::filesystem::path path, StepLogFormat format, Note note);

  void start(const StartEvent& event);
  void set_format(StepLogFormat format) { format_ = std::move(format); }
  // Whole lines, for the next flush().
  void add(std::string_view lines) { lines_ += lines; }
  void flush();

 private:
  struct Kept;
  Kept kept(std::string_view text, int64_t last_step) const;
  void begin();
  void go_on(const std::filesystem::path& from, int64_t last_step);
  void keep_aside(const std::string& reason, const std::string& suffix);
  void keep_before(const std::string& text);
  void drop_before();
  void keep_as(const std::filesystem::path& aside, const std::string& reason);
  std::string without_times(const std::string& text) const;
  std::filesystem::path path_aside(const std::string& suffix, int number) const;

  std::filesystem::path path_;
  std::optional<std::filesystem::path> before_;  // lines of an earlier start, which may be of this run
  StepLogFormat format_;
  Note note_;
  std::unique_ptr<AppendFile> file_;  // opened by the first flush
  std::string lines_;
};

}  // namespace heddle
