#include "tools/memory_timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/io/chrome_trace.h"
#include "tools/svg.h"

namespace heddle {
namespace {

// A curve of so many points is drawn as it is; of a longer one the largest of each group of neighbours.
constexpr size_t kMostTimelinePoints = 2000;

struct Point {
  double time;
  CategoryBytes bytes;
};

std::vector<Point> thinned(const std::vector<Point>& points) {
  const size_t group = points.size() / kMostTimelinePoints + 1;
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
  for (double tick = 0; tick <= most; tick += step) svg += svg_tick(y, {tick, format_bytes(static_cast<size_t>(tick))});
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
  ChromeTrace trace(to_string(report.device));
  MemoryReplay replay(report.trace);
  double ticks = 0, time = 0;
  for (const MemoryEvent& event : report.trace.events) {
    const bool counts = replay.add(event);
    if (counts) ++ticks;
    time = report.device.type == DeviceType::meta ? ticks : static_cast<double>(event.nanoseconds) * 1e-3;
    const std::string& layer = report.trace.names[event.scope];
    if (event.action == MemoryAction::mark) trace.enter_phase(layer, time);
    // The scope outside of all layers is only passed through between two nodes of one layer.
    if (event.action == MemoryAction::scope && !layer.empty()) trace.enter_layer(layer, time);
    if (counts) trace.allocated(replay.now(), time);
  }
  trace.enter_phase("", time);
  return trace.text();
}

}  // namespace heddle
