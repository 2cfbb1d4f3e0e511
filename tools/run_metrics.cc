#include "tools/run_metrics.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <system_error>

#include "core/config/c_locale.h"
#include "core/config/nearest_name.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "core/runtime/message.h"
#include "core/runtime/utf8.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> fields_of(std::string_view line) {
  std::vector<std::string> fields;
  for (size_t begin = 0; begin <= line.size();) {
    const size_t end = std::min(line.find(',', begin), line.size());
    fields.emplace_back(line.substr(begin, end - begin));
    begin = end + 1;
  }
  return fields;
}

fs::path file_of(const fs::path& run) {
  std::error_code unreadable;
  if (fs::is_regular_file(run, unreadable)) return run;
  if (!fs::is_directory(run, unreadable)) {
    throw UsageError(fmt::format("{}: there is no such run folder", run.string()));
  }
  if (!fs::exists(run / "metrics.csv", unreadable)) {
    throw UsageError(
        fmt::format("{} holds no metrics.csv, expected the folder of a run (logging.csv: true)", run.string()));
  }
  return run / "metrics.csv";
}

}  // namespace

std::vector<double> RunMetrics::column(size_t index) const {
  std::vector<double> values;
  for (const std::vector<double>& row : rows) values.push_back(row[index]);
  return values;
}

RunMetrics read_metrics(const fs::path& run) {
  RunMetrics metrics{.file = file_of(run), .columns = {}, .rows = {}};
  const std::string text = read_regular_file(metrics.file);
  int line_number = 0;
  const auto refuse = [&](const std::string& found, const std::string& expected) {
    fail("{}:{}: found {}, expected {}", metrics.file.string(), line_number, with_visible_controls(found), expected);
  };
  for (size_t begin = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    begin = end + 1;
    const std::vector<std::string> fields = fields_of(line);
    if (++line_number == 1) {
      metrics.columns = fields;
      if (fields[0] != "step") refuse("'" + fields[0] + "'", "the name of the first column, step");
      continue;
    }
    if (fields.size() != metrics.columns.size()) {
      refuse(fmt::format("{} field{}", fields.size(), fields.size() == 1 ? "" : "s"),
             fmt::format("{}", metrics.columns.size()));
    }
    std::vector<double>& row = metrics.rows.emplace_back();
    for (size_t i = 0; i < fields.size(); ++i) {
      char* rest = nullptr;
      const double value = strtod_l(fields[i].c_str(), &rest, c_locale());
      if (rest != fields[i].c_str() + fields[i].size())
        refuse("'" + fields[i] + "'", "a number in column " + metrics.columns[i]);
      row.push_back(fields[i].empty() ? std::numeric_limits<double>::quiet_NaN() : value);
    }
    if (!(row[0] > 0)) refuse("'" + fields[0] + "'", "a step");
    if (metrics.rows.size() > 1 && row[0] <= metrics.rows[metrics.rows.size() - 2][0]) {
      refuse("step " + fields[0], "one after that of the line before");
    }
  }
  if (metrics.rows.empty()) throw UsageError(fmt::format("{} holds no step yet", metrics.file.string()));
  return metrics;
}

size_t column_of(const RunMetrics& metrics, const std::string& name) {
  const auto found = std::find(metrics.columns.begin(), metrics.columns.end(), name);
  if (found != metrics.columns.end()) return static_cast<size_t>(found - metrics.columns.begin());
  throw UsageError(fmt::format("{} has no column '{}', expected one of {}{}", metrics.file.string(), name,
                               join_names(metrics.columns), did_you_mean(name, metrics.columns)));
}

}  // namespace heddle
