#include "tools/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

namespace heddle {
std::string svg_escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&') {
      safe += "&amp;";
    } else if (c == '<') {
      safe += "&lt;";
    } else {
      safe += c;
    }
  }
  return safe;
}

double SvgAxis::operator()(double value) const {
  const double span = is_logarithmic ? std::log(high / low) : high - low;
  const double part = (is_logarithmic ? std::log(value / low) : value - low) / std::max(span, 1e-9);
  return from + (to - from) * part;
}

std::string svg_begin(const std::string& title, const std::string& x_label, const std::string& y_label) {
  return fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='800' height='420' font-family='sans-serif' font-size='12'>\n"
      "<rect width='800' height='420' fill='white'/>\n<text x='70' y='22' font-size='15'>{}</text>\n"
      "<path d='M70 40V360H560' fill='none' stroke='black'/>\n<text x='300' y='408'>{}</text>\n"
      "<text x='10' y='32'>{}</text>\n",
      svg_escaped(title), svg_escaped(x_label), svg_escaped(y_label));
}

std::string svg_tick(const SvgAxis& y, double value, const std::string& label) {
  return fmt::format("<path d='M70 {0:.1f}H560' stroke='#ddd'/><text x='64' y='{0:.1f}' text-anchor='end'>{1}</text>\n",
                     y(value), label);
}

std::string svg_legend(int index, const std::string& color, const std::string& label) {
  return fmt::format("<text x='575' y='{}' fill='{}'>{}</text>\n", 52 + 18 * index, color, svg_escaped(label));
}

std::string svg_end() { return "</svg>\n"; }

const char* svg_color(size_t index) {
  constexpr const char* colors[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888"};
  return colors[index % 7];
}

}  // namespace heddle
