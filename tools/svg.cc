#include "tools/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/utf8.h"

namespace heddle {
namespace {

// Of the control characters XML allows the tab and the ends of lines; U+FFFE and U+FFFF are no characters to it.
bool is_allowed_in_xml(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (first < 0x20) return first == '\t' || first == '\n' || first == '\r';
  return character != "\xef\xbf\xbe" && character != "\xef\xbf\xbf";
}

}  // namespace

std::string svg_escaped(const std::string& text) {
  const std::string valid = valid_utf8(text);
  std::string safe;
  for (std::string_view rest = valid; !rest.empty();) {
    const std::string_view character = rest.substr(0, character_length(rest));
    rest.remove_prefix(character.size());
    if (character == "&") {
      safe += "&amp;";
    } else if (character == "<") {
      safe += "&lt;";
    } else {
      safe += is_allowed_in_xml(character) ? character : kReplacementCharacter;
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
  return fmt::format(
      "<path d='M70 {0:.1f}H560' stroke='#ddd'/><text x='64' y='{0:.1f}' dy='4' text-anchor='end'>{1}</text>\n",
      y(value), label);
}

std::string svg_x_tick(const SvgAxis& x, double value, const std::string& label) {
  return fmt::format("<text x='{:.1f}' y='378' text-anchor='middle'>{}</text>\n", x(value), label);
}

std::vector<double> svg_ticks(const SvgAxis& axis, int count) {
  std::vector<double> ticks;
  constexpr double digits[] = {1, 2, 5};
  if (axis.is_logarithmic && axis.high / axis.low >= 10) {
    const bool has_powers_alone = axis.high / axis.low >= 100;
    for (double power = std::pow(10.0, std::floor(std::log10(axis.low))); power <= axis.high; power *= 10.0) {
      for (const double digit : digits) {
        if (digit > 1 && has_powers_alone) break;
        if (power * digit >= axis.low && power * digit <= axis.high) ticks.push_back(power * digit);
      }
    }
    return ticks;
  }
  const double wanted = (axis.high - axis.low) / count;
  double step = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double digit : {10.0, 5.0, 2.0}) {
    if (step * digit <= wanted * 1.5) {
      step *= digit;
      break;
    }
  }
  for (double at = std::ceil(axis.low / step); at * step <= axis.high; ++at) ticks.push_back(at * step);
  return ticks;
}

std::string svg_number(double value) {
  const double size = std::abs(value);
  if (size < 1e-12) return "0";
  if (size >= 1e9) return fmt::format("{:.4g}G", value * 1e-9);
  if (size >= 1e6) return fmt::format("{:.4g}M", value * 1e-6);
  if (size >= 1e4) return fmt::format("{:.4g}k", value * 1e-3);
  return fmt::format("{:.4g}", value);
}

std::string svg_legend(int index, const std::string& color, const std::string& label) {
  return fmt::format("<text x='575' y='{}' fill='{}'>{}</text>\n", 52 + 18 * index, color, svg_escaped(label));
}

std::string svg_end() { return "</svg>\n"; }

const char* svg_color(size_t index) {
  constexpr const char* colors[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888"};
  return colors[index % 7];
}

std::string svg_lines(const std::string& title, const std::string& x_label, const std::string& y_label,
                      std::span<const SvgLine> lines) {
  SvgAxis x{1e300, 0, kSvgLeft, kSvgRight, true}, y{1e300, 0, kSvgBottom, kSvgTop, true};
  std::set<double> x_ticks;
  for (const SvgLine& line : lines) {
    for (const auto& [at, value] : line.points) {
      x.low = std::min(x.low, at), x.high = std::max(x.high, at);
      y.low = std::min(y.low, value), y.high = std::max(y.high, value);
      x_ticks.insert(at);
    }
  }
  std::string svg = svg_begin(title, x_label, y_label);
  for (double tick = std::pow(10.0, std::floor(std::log10(y.low))); tick <= y.high * 1.0001; tick *= 10.0) {
    if (tick >= y.low * 0.9999) svg += svg_tick(y, tick, fmt::format("{:g}", tick));
  }
  for (const double tick : x_ticks) svg += svg_x_tick(x, tick, fmt::format("{:g}", tick));
  int labels = 0;
  for (const SvgLine& line : lines) {
    std::string path;
    for (const auto& [at, value] : line.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(at), y(value));
      svg += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='3' fill='{}'/>\n", x(at), y(value), line.color);
    }
    svg += fmt::format("<path d='{}' fill='none' stroke='{}'{}/>\n", path, line.color,
                       line.is_dashed ? " stroke-dasharray='5 4'" : "");
    if (!line.label.empty()) svg += svg_legend(labels++, line.color, line.label);
  }
  return svg + svg_end();
}

}  // namespace heddle
