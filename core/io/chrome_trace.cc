#include "core/io/chrome_trace.h"

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>

#include "core/io/json_text.h"

namespace heddle {
namespace {

using OrderedJson = nlohmann::ordered_json;

enum Row { row_phases = 1, row_layers = 2, row_kernels = 3 };

std::vector<std::string_view> parts_of(std::string_view path) {
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    parts.push_back(path.substr(0, dot));
    path = dot == std::string_view::npos ? "" : path.substr(dot + 1);
  }
  return parts;
}

std::string event(const OrderedJson& json) { return json_text(json) + ","; }

}  // namespace

ChromeTrace::ChromeTrace(std::string_view process) {
  events_ = event({{"ph", "M"}, {"pid", 1}, {"name", "process_name"}, {"args", {{"name", process}}}});
  name_row(row_phases, "phases");
  name_row(row_layers, "layers");
}

void ChromeTrace::name_row(int row, std::string_view name) {
  events_ += event({{"ph", "M"}, {"pid", 1}, {"tid", row}, {"name", "thread_name"}, {"args", {{"name", name}}}});
}

void ChromeTrace::begin(int row, std::string_view name, double time) {
  events_ += event({{"ph", "B"}, {"pid", 1}, {"tid", row}, {"ts", time}, {"name", name}});
}

void ChromeTrace::end(int row, double time) { events_ += event({{"ph", "E"}, {"pid", 1}, {"tid", row}, {"ts", time}}); }

void ChromeTrace::enter_layer(std::string_view path, double time) {
  const std::vector<std::string_view> parts = parts_of(path);
  size_t common = 0;
  while (common < std::min(parts.size(), open_.size()) && parts[common] == open_[common]) ++common;
  for (; open_.size() > common; open_.pop_back()) end(row_layers, time);
  for (size_t i = common; i < parts.size(); ++i) {
    begin(row_layers, parts[i], time);
    open_.emplace_back(parts[i]);
  }
}

void ChromeTrace::enter_phase(std::string_view name, double time) {
  enter_layer("", time);
  if (in_phase_) end(row_phases, time);
  if (!name.empty()) begin(row_phases, name, time);
  in_phase_ = !name.empty();
}

void ChromeTrace::kernel(std::string_view name, double from, double to) {
  if (!has_kernels_) name_row(row_kernels, "kernels");
  has_kernels_ = true;
  events_ += event({{"ph", "X"}, {"pid", 1}, {"tid", row_kernels}, {"ts", from}, {"dur", to - from}, {"name", name}});
}

void ChromeTrace::allocated(const CategoryBytes& bytes, double time) {
  OrderedJson values = OrderedJson::object();
  for (size_t i = 0; i < kMemoryCategories; ++i) {
    values[std::string(name(static_cast<MemoryCategory>(i)))] = bytes[i];
  }
  events_ += event({{"ph", "C"}, {"pid", 1}, {"ts", time}, {"name", "allocated"}, {"args", values}});
}

std::string ChromeTrace::text() const {
  return R"({"traceEvents":[)" + events_.substr(0, events_.size() - 1) + R"(],"displayTimeUnit":"ms"})" + "\n";
}

}  // namespace heddle
