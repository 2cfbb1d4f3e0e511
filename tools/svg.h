// Charts as SVG: a frame with a title and axes, and a legend.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace heddle {

// Maps a range of numbers to a range of pixels.
struct SvgAxis {
  double low, high, from, to;
  bool is_logarithmic = false;
  double operator()(double value) const;
};

// A place on an axis, and the number that is written there.
struct SvgTick {
  double value;
  std::string label;
};

// The place of the plot in a chart of 800 x 420 pixels; what a chart draws comes between svg_begin() and svg_end().
inline constexpr double kSvgLeft = 70, kSvgRight = 560, kSvgTop = 40, kSvgBottom = 360;

// The text without what SVG would take for markup; U+FFFD stands for bytes that are no UTF-8 and for characters that
// XML does not allow. Titles and labels below are escaped by the functions.
std::string svg_escaped(const std::string& text);

std::string svg_begin(const std::string& title, const std::string& x_label, const std::string& y_label);
// A grid line across the plot with its number.
std::string svg_tick(const SvgAxis& y, const SvgTick& tick);
// A number below the plot, at its place on the axis.
std::string svg_x_tick(const SvgAxis& x, const SvgTick& tick);
// Round numbers on an axis: about `count` at equal distances, 1, 2 or 5 times a power of ten. On a logarithmic axis of
// at least a decade all of these numbers, and of two decades the powers of ten alone, at most about 20. On an axis too
// narrow for different numbers its lower end.
std::vector<SvgTick> svg_ticks(const SvgAxis& axis, int count);
// "250", "20k", "1.5M".
std::string svg_number(double value, int digits = 4);
// The entry `index` of the legend beside the plot.
std::string svg_legend(int index, const std::string& color, const std::string& label);
std::string svg_end();

// Colors that are told apart, in turn.
const char* svg_color(size_t index);

// A line of a chart: its points, which are all above 0 and sorted by x. A line without a label has no entry in the
// legend.
struct SvgLine {
  std::string label;
  std::vector<std::pair<double, double>> points;
  const char* color = "black";
  bool is_dashed = false;
};

// A chart of lines with two logarithmic axes; the ticks of x are at the points.
std::string svg_lines(const std::string& title, const std::string& x_label, const std::string& y_label,
                      std::span<const SvgLine> lines);

}  // namespace heddle
