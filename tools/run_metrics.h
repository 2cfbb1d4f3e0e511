// The numbers of a run, as metrics.csv holds them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace heddle {

struct RunMetrics {
  std::filesystem::path file;
  std::vector<std::string> columns;       // "step" is the first
  std::vector<std::vector<double>> rows;  // NaN where a field is empty
  std::vector<double> column(size_t index) const;
};

// Of a run folder, or of the file itself. A last line without its end, which a run may be writing, is left out. Throws
// UsageError for what is no run, and Error "FILE:LINE: ..." for a file that is damaged.
RunMetrics read_metrics(const std::filesystem::path& run);

// The place of a column. Throws UsageError that names those there are.
size_t column_of(const RunMetrics& metrics, const std::string& name);

}  // namespace heddle
