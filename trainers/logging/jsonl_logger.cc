#include "trainers/logging/jsonl_logger.h"

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/io/json_text.h"

namespace heddle {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson event_of(std::string_view name, int64_t step) {
  return {{"event", name}, {"step", step}, {"time", wall_time()}};
}

std::string line_of(const OrderedJson& json) { return json_text(json) + "\n"; }

int64_t step_of_object(std::string_view line) {
  const OrderedJson json = OrderedJson::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("event")) return -1;
  const auto step = json.find("step");
  return step != json.end() && step->is_number_integer() ? step->get<int64_t>() : -1;
}

// Half a line stays as it is.
std::string line_without_times(std::string_view line) {
  OrderedJson json = OrderedJson::parse(line, nullptr, false);
  if (!json.is_object()) return std::string(line);
  for (const char* key : {"time", "tokens_per_second"}) json.erase(key);
  return line_of(json);
}

OrderedJson bytes_of(const CategoryBytes& bytes) {
  OrderedJson json = OrderedJson::object();
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] > 0) json[std::string(name(static_cast<MemoryCategory>(i)))] = bytes[i];
  }
  return json;
}

}  // namespace

JsonlLogger::JsonlLogger(std::filesystem::path path, Note note, const LoggingConfig& config)
    : config_(config),
      log_(std::move(path),
           {.header = {}, .step_of = step_of_object, .logging = config, .without_times = line_without_times},
           std::move(note)) {}

void JsonlLogger::start(const StartEvent& event) {
  log_.start(event);
  step_ = event.step;
  has_started_ = true;
  OrderedJson json = event_of("start", event.step);
  json["steps"] = event.steps;
  json["config"] = event.config;
  json["program"] = event.program;
  json["parameters"] = event.parameters;
  json["dtype"] = name(event.dtype);
  json["batch_size"] = event.batch_size;
  json["sequence_length"] = event.sequence_length;
  json["device"] = to_string(event.device);
  if (!event.device_name.empty()) json["device_name"] = event.device_name;
  if (event.checkpoint) json["checkpoint"] = event.checkpoint->string();
  log_.add(line_of(json));
  for (const std::string& line : std::exchange(notes_, {})) note(line);
}

void JsonlLogger::step(const StepEvent& event) {
  step_ = event.step;
  tokens_ += event.tokens;
  if (config_.holds(event)) {
    OrderedJson json = event_of("step", event.step);
    json["tokens"] = event.total_tokens;
    json["loss"] = event.loss;
    json["gradient_norm"] = event.gradient_norm;
    json["learning_rate"] = event.learning_rate;
    json["tokens_per_second"] = rate_.next(static_cast<double>(std::exchange(tokens_, 0)), event.seconds);
    json["memory"] = bytes_of(event.category_peaks);
    log_.add(line_of(json));
  }
}

void JsonlLogger::evaluation(const EvaluationEvent& event) {
  OrderedJson json = event_of("evaluation", event.step);
  json["loss"] = event.loss;
  if (event.accuracy == event.accuracy) json["accuracy"] = event.accuracy;
  log_.add(line_of(json));
}

void JsonlLogger::checkpoint(const CheckpointEvent& event) {
  OrderedJson json = event_of("checkpoint", event.step);
  json["path"] = event.path.string();
  log_.add(line_of(json));
}

void JsonlLogger::profile(const ProfileEvent& event) {
  OrderedJson json = event_of("profile", event.step);
  json["tables"] = event.tables;
  if (!event.trace.empty()) json["trace"] = event.trace.string();
  log_.add(line_of(json));
}

void JsonlLogger::end(const EndEvent& event) {
  OrderedJson json = event_of("end", event.step);
  json["finished"] = event.finished;
  json["tokens"] = event.total_tokens;
  json["seconds"] = event.seconds;
  json["elapsed"] = event.elapsed;
  json["peak_bytes"] = event.peak_bytes;
  if (event.best) json["best"] = {{"step", event.best->step}, {"loss", event.best->loss}};
  log_.add(line_of(json));
}

void JsonlLogger::sample(const SampleEvent& event) {
  OrderedJson json = event_of("sample", event.step);
  json["text"] = event.text;
  log_.add(line_of(json));
}

void JsonlLogger::note(const std::string& line) {
  if (!has_started_) return notes_.push_back(line);
  OrderedJson json = event_of("note", step_);
  json["text"] = line;
  log_.add(line_of(json));
}

}  // namespace heddle
