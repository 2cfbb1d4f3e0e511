#include "trainers/logging/tensorboard_logger.h"

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace heddle {
namespace {

// As a block of code in Markdown, which keeps its lines.
std::string as_code(const std::string& text) {
  std::string code = "    ";
  for (const char c : text) {
    code += c;
    if (c == '\n') code += "    ";
  }
  return code;
}

}  // namespace

TensorBoardLogger::TensorBoardLogger(std::filesystem::path folder, const LoggingConfig& config)
    : folder_(std::move(folder)), config_(config) {}

void TensorBoardLogger::start(const StartEvent& event) {
  if (event.step >= event.steps) return;  // nothing will be told
  file_.emplace(folder_, wall_time());
  file_->start(wall_time(), event.step + 1);
}

void TensorBoardLogger::step(const StepEvent& event) {
  const bool is_first = last_.step == 0;
  last_ = event;
  tokens_ += event.tokens;
  if (config_.holds(event)) {
    const double rate = rate_.next(static_cast<double>(std::exchange(tokens_, 0)), event.seconds);
    const std::vector<EventScalar> scalars = {{"train/loss", event.loss},
                                              {"train/gradient_norm", event.gradient_norm},
                                              {"train/learning_rate", event.learning_rate},
                                              {"train/tokens_per_second", rate}};
    file_->scalars(wall_time(), event.step, scalars);
  }
  if (is_first) memory();
}

void TensorBoardLogger::memory() {
  std::vector<EventScalar> scalars;
  for (size_t i = 0; i < kMemoryCategories; ++i) {
    if (last_.category_peaks[i] == 0) continue;
    scalars.emplace_back("memory/" + std::string(name(static_cast<MemoryCategory>(i))),
                         static_cast<double>(last_.category_peaks[i]) / (1 << 20));
  }
  file_->scalars(wall_time(), last_.step, scalars);
}

void TensorBoardLogger::evaluation(const EvaluationEvent& event) {
  std::vector<EventScalar> scalars = {{"validation/loss", event.loss}};
  if (!std::isnan(event.accuracy)) scalars.emplace_back("validation/accuracy", event.accuracy);
  file_->scalars(wall_time(), event.step, scalars);
  memory();
}

void TensorBoardLogger::sample(const SampleEvent& event) {
  if (!file_) return;
  file_->text(wall_time(), event.step, "sample", as_code(event.text));
}

void TensorBoardLogger::flush() {
  if (file_) file_->write();
}

}  // namespace heddle
