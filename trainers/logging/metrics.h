// metrics.csv of a run: one row a step. Holds no times, so that two runs of one config write the same file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>

namespace heddle {

// NaN: nothing was measured, an empty field.
struct MetricsRow {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  int64_t step = 0;
  int64_t tokens = 0;            // seen so far
  double loss = kNone;           // training loss, nats per token
  double gradient_norm = kNone;  // before clipping
  double learning_rate = kNone;
  double validation_loss = kNone;
  double validation_accuracy = kNone;
};

// Rows are kept in memory and the whole file is replaced by save(), so it is never half-written.
class Metrics {
 public:
  explicit Metrics(std::filesystem::path path);

  // Starts with the rows of `from` up to `last_step`. Throws Error when a row is missing there.
  void load(const std::filesystem::path& from, int64_t last_step);
  void add(const MetricsRow& row);
  void save() const;

 private:
  std::filesystem::path path_;
  std::string text_;
};

}  // namespace heddle
