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

constexpr int kFewestDigits = 4, kMostDigits = 15;  // of a number beside an axis

// Significant digits that tell neighbouring multiples of `step` apart.
int digits_of(double value, double step) {
  if (value == 0) return kFewestDigits;
  const double digits = std::floor(std::log10(std::abs(value))) - std::floor(std::log10(step)) + 1;
  return std::clamp(static_cast<int>(digits), kFewestDigits, kMostDigits);
}

// 1, 2 and 5 times the powers of ten, or of two decades and more the powers alone; of many decades some of them.
std::vector<SvgTick> powers_of_ten(const SvgAxis& axis) {
  constexpr int kMostPowers = 20;
  constexpr double all[] = {1, 2, 5}, one[] = {1};
  const auto first = static_cast<int>(std::floor(std::log10(axis.low)));
  const auto last = static_cast<int>(std::floor(std::log10(axis.high)));
  std::vector<SvgTick> ticks;
  for (int power = first; power <= last; power += (last - first) / kMostPowers + 1) {
    for (const double digit : axis.high / axis.low >= 100 ? std::span<const double>(one) : all) {
      const double value = digit * std::pow(10.0, power);
      if (value >= axis.low && value <= axis.high) ticks.push_back({value, svg_number(value)});
    }
  }
  return ticks;
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
  // Halves, because the difference of two doubles may overflow.
  const auto place = [&](double at) { return is_logarithmic ? std::log(at) : at / 2; };
  const double span = place(high) - place(low);
  return span > 0 ? from + (to - from) * ((place(value) - place(low)) / span) : from;
}

std::string svg_begin(const std::string& title, const std::string& x_label, const std::string& y_label) {
  return fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='800' height='420' font-family='sans-serif' font-size='12'>\n"
      "<rect width='800' height='420' fill='white'/>\n<text x='70' y='22' font-size='15'>{}</text>\n"
      "<path d='M70 40V360H560' fill='none' stroke='black'/>\n<text x='300' y='408'>{}</text>\n"
      "<text x='10' y='32'>{}</text>\n",
      svg_escaped(title), svg_escaped(x_label), svg_escaped(y_label));
}

std::string svg_tick(const SvgAxis& y, const SvgTick& tick) {
  return fmt::format(
      "<path d='M70 {0:.1f}H560' stroke='#ddd'/><text x='64' y='{0:.1f}' dy='4' text-anchor='end'>{1}</text>\n",
      y(tick.value), tick.label);
}

std::string svg_x_tick(const SvgAxis& x, const SvgTick& tick) {
  return fmt::format("<text x='{:.1f}' y='378' text-anchor='middle'>{}</text>\n", x(tick.value), tick.label);
}

std::vector<SvgTick> svg_ticks(const SvgAxis& axis, int count) {
  if (axis.is_logarithmic && axis.high / axis.low >= 10) return powers_of_ten(axis);
  const double wanted = axis.high / count - axis.low / count;
  const double size = std::max(std::abs(axis.low), std::abs(axis.high));
  if (wanted <= size * std::pow(10.0, 2 - kMostDigits))
    return {{axis.low, svg_number(axis.low, wanted > 0 ? kMostDigits : kFewestDigits)}};
  double step = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double digit : {10.0, 5.0, 2.0}) {
    if (step * digit <= wanted * 1.5) {
      step *= digit;
      break;
    }
  }
  std::vector<SvgTick> ticks;
  const double first = std::ceil(axis.low / step), last = std::floor(axis.high / step);
  for (int i = 0; i <= last - first; ++i) {
    const double value = (first + i) * step;
    ticks.push_back({value, svg_number(value, digits_of(value, step))});
  }
  return ticks;
}

std::string svg_number(double value, int digits) {
  const double size = std::abs(value);
  if (size >= 1e9) return fmt::format("{:.{}g}G", value * 1e-9, digits);
  if (size >= 1e6) return fmt::format("{:.{}g}M", value * 1e-6, digits);
  if (size >= 1e4) return fmt::format("{:.{}g}k", value * 1e-3, digits);
  return fmt::format("{:.{}g}", value, digits);
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
  for (const SvgTick& tick : svg_ticks(y, 6)) svg += svg_tick(y, tick);
  for (const double value : x_ticks) svg += svg_x_tick(x, {value, fmt::format("{:g}", value)});
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
