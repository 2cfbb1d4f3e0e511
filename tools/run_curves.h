// Curves of runs: how their metrics went, as a chart and in words.                                   docs/watching.md
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tools/run_metrics.h"

namespace heddle {

struct CurveOptions {
  std::vector<std::string> metrics = {"loss", "validation_loss"};  // columns of metrics.csv
  std::string x = "step";                                          // the column to draw over: step or tokens
  int64_t smooth = 0;           // rows in the mean that is drawn for each; 0: a fiftieth of the rows, 1: the rows alone
  bool is_logarithmic = false;  // the axis of the metrics
};

// A line for each run and metric that has any value: the rows as they are, pale, and their means on top. Throws
// UsageError for a column that is not there, and for metrics of which there is no value, or with a logarithmic axis
// none above 0.
std::string curves_svg(std::span<const RunMetrics> runs, const CurveOptions& options);

// The last and the lowest value of each curve, as lines of a table.
std::string curves_text(std::span<const RunMetrics> runs, const CurveOptions& options);

}  // namespace heddle
