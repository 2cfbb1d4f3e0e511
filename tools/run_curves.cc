#include "tools/run_curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <string_view>
#include <utility>

#include "core/runtime/error.h"
#include "core/runtime/utf8.h"
#include "tools/svg.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

// A line of more points is drawn by the smallest and the largest of each group of neighbours.
constexpr size_t kMostCurvePoints = 1500;
// Fewer points than these are drawn as points, too.
constexpr size_t kFewPoints = 60;
constexpr size_t kMostLetters = 32;  // of a label in the legend
constexpr int kMostLabels = 17;

using Points = std::vector<std::pair<double, double>>;

struct Curve {
  std::string run, metric;
  size_t run_index = 0, metric_index = 0;
  Points points;  // those with a value
};

// The names of their folders, or the paths where two are alike.
std::vector<std::string> names_of(std::span<const RunMetrics> runs) {
  std::vector<std::string> names;
  for (const RunMetrics& run : runs) {
    const fs::path folder = fs::absolute(run.file).lexically_normal().parent_path();
    names.push_back(folder.filename().string());
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::count(names.begin(), names.end(), names[i]) < 2) continue;
    const std::string name = names[i];
    for (size_t k = i; k < names.size(); ++k) {
      if (names[k] == name) names[k] = runs[k].file.parent_path().string();
    }
  }
  return names;
}

std::vector<Curve> curves_of(std::span<const RunMetrics> runs, const CurveOptions& options) {
  const std::vector<std::string> names = names_of(runs);
  std::vector<Curve> curves;
  for (size_t metric = 0; metric < options.metrics.size(); ++metric) {
    for (size_t run = 0; run < runs.size(); ++run) {
      const std::vector<double> x = runs[run].column(column_of(runs[run], options.x));
      const std::vector<double> y = runs[run].column(column_of(runs[run], options.metrics[metric]));
      Curve curve{names[run], options.metrics[metric], run, metric, {}};
      for (size_t i = 0; i < x.size(); ++i) {
        const bool can_be_drawn = std::isfinite(y[i]) && (!options.is_logarithmic || y[i] > 0);
        if (can_be_drawn && std::isfinite(x[i])) curve.points.emplace_back(x[i], y[i]);
      }
      if (!curve.points.empty()) curves.push_back(std::move(curve));
    }
  }
  if (curves.empty()) {
    throw UsageError(fmt::format("no run has a value of {}{}", fmt::join(options.metrics, " or "),
                                 options.is_logarithmic ? " above 0, as a logarithmic axis needs" : ""));
  }
  return curves;
}

// The sum of a window that moves on. Nothing is ever subtracted, so that a huge value is in the sums of those windows
// alone that hold it.
class WindowSum {
 public:
  void add_last(double value) {
    newer_.push_back(value);
    sum_of_newer_ += value;
  }
  void remove_first() {
    if (sums_of_older_.empty()) age();
    sums_of_older_.pop_back();
  }
  double sum() const { return (sums_of_older_.empty() ? 0.0 : sums_of_older_.back()) + sum_of_newer_; }

 private:
  void age() {
    double sum = 0.0;
    for (; !newer_.empty(); newer_.pop_back()) sums_of_older_.push_back(sum += newer_.back());
    sum_of_newer_ = 0.0;
  }

  std::vector<double> sums_of_older_;  // of each older value and those behind it; the first value is last
  std::vector<double> newer_;
  double sum_of_newer_ = 0.0;
};

// The mean of `count` neighbours, as many before as after, or one more before: at the beginning, where curves are
// steep, fewer on both sides, and at the end fewer after.
Points smoothed(const Points& points, size_t count) {
  constexpr double kScale = 0x1p-32;  // so that sums of the largest doubles do not overflow
  WindowSum window;
  size_t begin = 0, end = 0;
  Points means;
  for (size_t i = 0; i < points.size(); ++i) {
    const size_t before = std::min(count / 2, i), after = std::min((count - 1) / 2, i);
    for (; end < std::min(i + after + 1, points.size()); ++end) window.add_last(points[end].second * kScale);
    for (; begin < i - before; ++begin) window.remove_first();
    means.emplace_back(points[i].first, window.sum() / static_cast<double>(end - begin) / kScale);
  }
  return means;
}

Points thinned(const Points& points) {
  const size_t group = 2 * points.size() / kMostCurvePoints + 1;
  if (group == 1) return points;
  Points kept;
  for (size_t begin = 0; begin < points.size(); begin += group) {
    const auto first = points.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = points.begin() + static_cast<std::ptrdiff_t>(std::min(begin + group, points.size()));
    const auto [low, high] =
        std::minmax_element(first, last, [](const auto& a, const auto& b) { return a.second < b.second; });
    kept.push_back(std::min(*low, *high));  // by x
    if (low != high) kept.push_back(std::max(*low, *high));
  }
  return kept;
}

size_t window_of(const CurveOptions& options, size_t points) {
  return options.smooth > 0 ? static_cast<size_t>(options.smooth) : std::max<size_t>(points / 50, 1);
}

std::string path_of(const Points& points, const SvgAxis& x, const SvgAxis& y, const std::string& style) {
  std::string path;
  for (const auto& [at, value] : thinned(points)) {
    const double on_axis = std::clamp(value, y.low, y.high);  // where a mean of the smallest doubles is rounded to 0
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(at), y(on_axis));
  }
  return fmt::format("<path d='{}' fill='none' stroke-linejoin='round' {}/>\n", path, style);
}

std::string legend(int index, const std::string& label, const std::string& style) {
  const std::string whole = valid_utf8(label);
  const std::string_view end = last_characters(whole, kMostLetters);
  const std::string text = end.size() < whole.size() ? fmt::format("..{}", end) : whole;
  const int y = 52 + 18 * index;
  return fmt::format("<path d='M575 {}h20' fill='none' {}/><text x='601' y='{}'>{}</text>\n", y - 4, style, y,
                     svg_escaped(text));
}

// The range of all points, a little wider where the axis is linear.
std::pair<SvgAxis, SvgAxis> axes_of(const std::vector<Curve>& curves, bool is_logarithmic) {
  constexpr double kMost = std::numeric_limits<double>::max();
  SvgAxis x{kMost, -kMost, kSvgLeft, kSvgRight}, y{kMost, -kMost, kSvgBottom, kSvgTop, is_logarithmic};
  for (const Curve& curve : curves) {
    for (const auto& [at, value] : curve.points) {
      x.low = std::min(x.low, at), x.high = std::max(x.high, at);
      y.low = std::min(y.low, value), y.high = std::max(y.high, value);
    }
  }
  if (x.low == x.high) x.low -= 1, x.high += 1;
  const double size = std::max(std::abs(y.low), std::abs(y.high));
  if (y.high - y.low <= 1e-12 * size)  // a constant, but for rounding
    y.low *= y.low > 0 ? 0.9 : 1.1, y.high = y.high * (y.high > 0 ? 1.1 : 0.9) + (y.high == 0 ? 1 : 0);
  const double margin = 0.04 * y.high - 0.04 * y.low;
  if (!is_logarithmic) y.high += margin, y.low -= y.low >= 0 ? std::min(margin, y.low) : margin;
  y.low = std::max(y.low, -kMost), y.high = std::min(y.high, kMost);
  return {x, y};
}

}  // namespace

std::string curves_svg(std::span<const RunMetrics> runs, const CurveOptions& options) {
  const std::vector<Curve> curves = curves_of(runs, options);
  const auto [x, y] = axes_of(curves, options.is_logarithmic);
  const std::string title = fmt::format("{}", fmt::join(options.metrics, ", "));
  std::string svg = svg_begin(title, options.x, "");
  for (const SvgTick& tick : svg_ticks(y, 6)) svg += svg_tick(y, tick);
  for (const SvgTick& tick : svg_ticks(x, 6)) {
    if (tick.value == std::round(tick.value)) svg += svg_x_tick(x, tick);  // steps and tokens are whole numbers
  }
  int labels = 0;
  for (const Curve& curve : curves) {
    // Runs are told apart by their colors; the curves of a single one by theirs.
    const std::string color =
        fmt::format("stroke='{}'", svg_color(runs.size() > 1 ? curve.run_index : curve.metric_index));
    const char* dashes = runs.size() > 1 && curve.metric_index > 0 ? " stroke-dasharray='5 3'" : "";
    const std::string style = fmt::format("{} stroke-width='1.8'{}", color, dashes);
    const size_t window = window_of(options, curve.points.size());
    if (window > 1) svg += path_of(curve.points, x, y, color + " stroke-width='1' opacity='0.3'");
    svg += path_of(smoothed(curve.points, window), x, y, style);
    for (const auto& [at, value] : curve.points) {
      if (curve.points.size() >= kFewPoints || window > 1) break;
      svg += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='2.5' fill='white' {}/>\n", x(at), y(value), color);
    }
    if (labels < kMostLabels) svg += legend(labels++, curve.run + " " + curve.metric, style);
  }
  if (curves.size() > kMostLabels)
    svg += svg_legend(labels, "black", fmt::format("and {} more", curves.size() - kMostLabels));
  return svg + svg_end();
}

std::string curves_text(std::span<const RunMetrics> runs, const CurveOptions& options) {
  const std::vector<Curve> curves = curves_of(runs, options);
  size_t width = 3;
  for (const Curve& curve : curves) width = std::max(width, (curve.run + curve.metric).size() + 1);
  std::string text = fmt::format("{:<{}} {:>11} {:>9} {:>11} {:>9}\n", "run", width, "last", "at " + options.x,
                                 "lowest", "at " + options.x);
  for (const Curve& curve : curves) {
    const auto lowest = std::min_element(curve.points.begin(), curve.points.end(),
                                         [](const auto& a, const auto& b) { return a.second < b.second; });
    const auto& [last_x, last] = curve.points.back();
    text += fmt::format("{:<{}} {:>11.6g} {:>9.0f} {:>11.6g} {:>9.0f}\n", curve.run + " " + curve.metric, width, last,
                        last_x, lowest->second, lowest->first);
  }
  return text;
}

}  // namespace heddle
