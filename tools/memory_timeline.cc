#include "tools/memory_timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/svg.h"

namespace heddle {
namespace {

using Json = nlohmann::ordered_json;

// A curve of so many points is drawn as it is; of a longer one the largest of each group of neighbours.
constexpr size_t kMostPoints = 2000;

struct Point {
  double time;
  CategoryBytes bytes;
};

std::vector<Point> thinned(const std::vector<Point>& points) {
  const size_t group = points.size() / kMostPoints + 1;
  std::vector<Point> kept;
  for (size_t i = 0; i < points.size(); ++i) {
    if (i % group == 0) {
      kept.push_back(points[i]);
    } else if (total(points[i].bytes) > total(kept.back().bytes)) {
      kept.back() = points[i];
    }
  }
  return kept;
}

// A step of 1, 2 or 5 times a power of ten (of a power of 1024, in bytes) such that about five of them make `most`.
double tick_step(double most) {
  double unit = 1.0;
  while (most / 5 >= 1024 * unit) unit *= 1024;
  double step = unit;
  constexpr double factors[] = {2, 2.5, 2};  // 1, 2, 5, 10
  for (int i = 0; step * 5 < most; ++i) step *= factors[i % 3];
  return step;
}

std::vector<std::string_view> parts_of(std::string_view path) {
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    parts.push_back(path.substr(0, dot));
    path = dot == std::string_view::npos ? "" : path.substr(dot + 1);
  }
  return parts;
}

// The slices of layers. What is open is a stack: the parts of the path that the last event belonged to.
class Slices {
 public:
  explicit Slices(Json& events) : events_(events) {}

  // From now on work is done for this layer.
  void enter(std::string_view path, double time) {
    const std::vector<std::string_view> parts = parts_of(path);
    size_t common = 0;
    while (common < std::min(parts.size(), open_.size()) && parts[common] == open_[common]) ++common;
    while (open_.size() > common) close(time);
    for (size_t i = common; i < parts.size(); ++i) {
      events_.push_back({{"ph", "B"}, {"pid", 1}, {"tid", kLayers}, {"ts", time}, {"name", parts[i]}});
      open_.emplace_back(parts[i]);
    }
  }
  void enter_phase(std::string_view name, double time) {
    enter("", time);
    if (in_phase_) events_.push_back({{"ph", "E"}, {"pid", 1}, {"tid", kPhases}, {"ts", time}});
    if (!name.empty()) events_.push_back({{"ph", "B"}, {"pid", 1}, {"tid", kPhases}, {"ts", time}, {"name", name}});
    in_phase_ = !name.empty();
  }

 private:
  static constexpr int kPhases = 1, kLayers = 2;

  void close(double time) {
    events_.push_back({{"ph", "E"}, {"pid", 1}, {"tid", kLayers}, {"ts", time}});
    open_.pop_back();
  }

  Json& events_;
  std::vector<std::string> open_;
  bool in_phase_ = false;
};

}  // namespace

std::string timeline_svg(const MemoryReport& report, const std::string& title) {
  std::vector<Point> points{{0.0, {}}};
  std::vector<std::pair<double, std::string>> phases;
  MemoryReplay replay(report.trace);
  double time = 0;
  for (const MemoryEvent& event : report.trace.events) {
    if (event.action == MemoryAction::mark) phases.emplace_back(time, report.trace.names[event.scope]);
    if (replay.add(event)) points.push_back({++time, replay.now()});
  }
  const auto most = static_cast<double>(std::max<size_t>(report.stats.allocated.peak, 1));
  const SvgAxis x{0, std::max(time, 1.0), kSvgLeft, kSvgRight}, y{0, most, kSvgBottom, kSvgTop};
  std::string svg = svg_begin(title, "allocations and frees", "allocated");
  const double step = tick_step(most);
  for (double tick = 0; tick <= most; tick += step) svg += svg_tick(y, tick, format_bytes(static_cast<size_t>(tick)));
  points = thinned(points);
  std::vector<double> below(points.size(), 0.0);
  int index = 0;
  for (size_t category = 0; category < kMemoryCategories; ++category) {
    std::string bottom, top;
    bool is_empty = true;
    for (size_t i = points.size(); i-- > 0;) bottom += fmt::format("L{:.1f} {:.1f}", x(points[i].time), y(below[i]));
    for (size_t i = 0; i < points.size(); ++i) {
      is_empty = is_empty && points[i].bytes[category] == 0;
      below[i] += static_cast<double>(points[i].bytes[category]);
      top += fmt::format("{}{:.1f} {:.1f}", i == 0 ? "M" : "L", x(points[i].time), y(below[i]));
    }
    if (is_empty) continue;
    const char* color = svg_color(category);
    svg += fmt::format("<path d='{}{}Z' fill='{}'/>\n", top, bottom, color);
    svg += svg_legend(index++, color, std::string(name(static_cast<MemoryCategory>(category))));
  }
  for (size_t i = 0; i < phases.size(); ++i) {
    const auto& [begin, phase] = phases[i];
    svg += fmt::format("<path d='M{:.1f} 40V360' stroke='black' stroke-dasharray='2 3'/>\n", x(begin));
    const double end = i + 1 < phases.size() ? phases[i + 1].first : time;
    if (x(end) - x(begin) < 40) continue;  // there is no room for its name
    svg += fmt::format("<text x='{:.1f}' y='374' text-anchor='middle'>{}</text>\n", x((begin + end) / 2),
                       svg_escaped(phase));
  }
  return svg + svg_end();
}

std::string timeline_trace(const MemoryReport& report) {
  Json events = Json::array();
  events.push_back({{"ph", "M"}, {"pid", 1}, {"name", "process_name"}, {"args", {{"name", to_string(report.device)}}}});
  events.push_back({{"ph", "M"}, {"pid", 1}, {"tid", 1}, {"name", "thread_name"}, {"args", {{"name", "phases"}}}});
  events.push_back({{"ph", "M"}, {"pid", 1}, {"tid", 2}, {"name", "thread_name"}, {"args", {{"name", "layers"}}}});
  MemoryReplay replay(report.trace);
  Slices slices(events);
  double ticks = 0, time = 0;
  for (const MemoryEvent& event : report.trace.events) {
    const bool counts = replay.add(event);
    if (counts) ++ticks;
    time = report.device.type == DeviceType::meta ? ticks : static_cast<double>(event.nanoseconds) * 1e-3;
    const std::string& layer = report.trace.names[event.scope];
    if (event.action == MemoryAction::mark) slices.enter_phase(layer, time);
    // The scope outside of all layers is only passed through between two nodes of one layer.
    if (event.action == MemoryAction::scope && !layer.empty()) slices.enter(layer, time);
    if (!counts) continue;
    Json bytes = Json::object();
    for (size_t i = 0; i < kMemoryCategories; ++i) {
      bytes[std::string(name(static_cast<MemoryCategory>(i)))] = replay.now()[i];
    }
    events.push_back({{"ph", "C"}, {"pid", 1}, {"ts", time}, {"name", "allocated"}, {"args", bytes}});
  }
  slices.enter_phase("", time);
  return Json{{"traceEvents", events}, {"displayTimeUnit", "ms"}}.dump() + "\n";
}

}  // namespace heddle
