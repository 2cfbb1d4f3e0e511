#include "core/distributed/node_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr size_t kMostHosts = 65536;

[[noreturn]] void refuse_list(std::string_view list, std::string_view why) {
  throw UsageError(fmt::format("the list of hosts '{}' {}: expected names such as node[01-03,7],login", list, why));
}

// The parts of `text` between those commas that are not within brackets.
std::vector<std::string_view> split_outside_brackets(std::string_view text) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') ++depth;
    if (text[i] == ']') --depth;
    if (text[i] != ',' || depth != 0) continue;
    parts.push_back(text.substr(begin, i - begin));
    begin = i + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

uint64_t number_in(std::string_view list, std::string_view digits) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size())
    refuse_list(list, "has no number where one is expected");
  return number;
}

// The texts that "01-03,7" stands for: 01, 02, 03, 7.
std::vector<std::string> numbers_of(std::string_view list, std::string_view ranges) {
  std::vector<std::string> numbers;
  for (const std::string_view range : split_outside_brackets(ranges)) {
    const size_t dash = range.find('-');
    const std::string_view first = range.substr(0, dash);
    const std::string_view last = dash == std::string_view::npos ? first : range.substr(dash + 1);
    const uint64_t begin = number_in(list, first), end = number_in(list, last);
    if (begin > end) refuse_list(list, "has a range that runs backwards");
    if (end - begin >= kMostHosts - numbers.size()) refuse_list(list, "names too many hosts");
    for (uint64_t number = begin; number <= end; ++number) {
      numbers.push_back(fmt::format("{:0{}}", number, first.size()));
    }
  }
  return numbers;
}

// Adds the hosts that `name`, one entry of the list, stands for to `hosts`. What comes before `name` is `prefix`.
void expand(std::string_view list, const std::string& prefix, std::string_view name, std::vector<std::string>& hosts) {
  const size_t open = name.find('[');
  if (open == std::string_view::npos) {
    if (name.find(']') != std::string_view::npos) refuse_list(list, "has a bracket that is not opened");
    if (prefix.empty() && name.empty()) refuse_list(list, "has an empty name");
    if (hosts.size() == kMostHosts) refuse_list(list, "names too many hosts");
    hosts.push_back(prefix + std::string(name));
    return;
  }
  const size_t close = name.find(']', open);
  if (close == std::string_view::npos) refuse_list(list, "has a bracket that is not closed");
  for (const std::string& number : numbers_of(list, name.substr(open + 1, close - open - 1))) {
    expand(list, fmt::format("{}{}{}", prefix, name.substr(0, open), number), name.substr(close + 1), hosts);
  }
}

}  // namespace

std::vector<std::string> expand_node_list(std::string_view list) {
  std::vector<std::string> hosts;
  for (const std::string_view name : split_outside_brackets(list)) expand(list, "", name, hosts);
  return hosts;
}

}  // namespace heddle
