#include "trainers/profile/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string_view>
#include <utility>

#include "core/io/chrome_trace.h"

namespace heddle {
namespace {

constexpr size_t kRows = 24;  // of the table of layers and kernels

constexpr std::array<std::string_view, 3> kPhases = {"forward", "backward", "optimizer"};

// "blocks.*.mixer" for "blocks.3.mixer"; outside of all layers the phase.
std::string group_of(const ProfiledKernel& kernel) {
  if (kernel.layer.empty()) return "(" + kernel.phase + ")";
  std::string group;
  for (size_t begin = 0; begin <= kernel.layer.size();) {
    const size_t end = std::min(kernel.layer.find('.', begin), kernel.layer.size());
    const std::string part = kernel.layer.substr(begin, end - begin);
    const bool is_number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    group += (group.empty() ? "" : ".") + (is_number ? "*" : part);
    begin = end + 1;
  }
  return group;
}

// "gemm 2304x768x32768"
std::string label_of(const ProfiledKernel& kernel) {
  std::string label = kernel.name;
  char separator = ' ';
  for (const int64_t size : kernel.work.sizes) {
    if (size == 0) continue;
    label += separator + std::to_string(size);
    separator = 'x';
  }
  return label;
}

struct Cost {
  double milliseconds = 0.0, operations = 0.0, calls = 0.0;  // in a step

  void add(const ProfiledKernel& kernel, double steps) {
    milliseconds += (kernel.end - kernel.begin) / steps;
    operations += kernel.work.operations / steps;
    calls += 1.0 / steps;
  }
};

// Sums by the text that `key_of` gives for a kernel, the longest first.
template <class KeyOf>
std::vector<std::pair<std::string, Cost>> costs(const Profile& profile, const KeyOf& key_of) {
  std::map<std::string, Cost> sums;
  for (const ProfiledStep& step : profile.steps) {
    for (const ProfiledKernel& kernel : step.kernels) {
      sums[key_of(kernel)].add(kernel, static_cast<double>(profile.steps.size()));
    }
  }
  std::vector<std::pair<std::string, Cost>> sorted(sums.begin(), sums.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.milliseconds > b.second.milliseconds; });
  return sorted;
}

// The columns after the name of a row.
std::string columns(const Cost& cost, double whole) {
  std::string text = fmt::format("{:>10.3f}{:>7.1f}{:>8.0f}{:>11.1f}", cost.milliseconds,
                                 100.0 * cost.milliseconds / whole, cost.calls, 1e3 * cost.milliseconds / cost.calls);
  if (cost.operations > 0.0) text += fmt::format("{:>12.2f}", cost.operations / cost.milliseconds * 1e-9);
  return text + "\n";
}

constexpr std::string_view kProfileColumns = "        ms      %   calls    us each    TFLOP/s\n";

std::string by_layer(const Profile& profile, size_t width, double whole) {
  std::map<std::string, std::array<double, kPhases.size()>> phases;
  for (const ProfiledStep& step : profile.steps) {
    for (const ProfiledKernel& kernel : step.kernels) {
      const auto phase = std::find(kPhases.begin(), kPhases.end(), kernel.phase) - kPhases.begin();
      if (static_cast<size_t>(phase) == kPhases.size()) continue;
      phases[group_of(kernel)][static_cast<size_t>(phase)] +=
          (kernel.end - kernel.begin) / static_cast<double>(profile.steps.size());
    }
  }
  std::string text = fmt::format("{:<{}}{:>10}{:>10}{:>10}{:>10}{:>7}\n", "by layer", width, "forward", "backward",
                                 "optimizer", "ms", "%");
  for (const auto& [group, cost] : costs(profile, group_of)) {
    text += fmt::format("  {:<{}}", group, width - 2);
    for (const double part : phases[group])
      text += part > 0.0 ? fmt::format("{:>10.3f}", part) : fmt::format("{:>10}", "");
    text += fmt::format("{:>10.3f}{:>7.1f}\n", cost.milliseconds, 100.0 * cost.milliseconds / whole);
  }
  return text;
}

std::string headline(const Profile& profile, double whole, const Cost& kernels) {
  const int64_t first = profile.steps.front().step, last = profile.steps.back().step;
  const std::string which = first == last ? fmt::format("step {}", first) : fmt::format("steps {} to {}", first, last);
  std::string text = fmt::format("profile of {} on {}: {:.2f} ms a step, {:.2f} ms ({:.1f} %) in {:.0f} kernels", which,
                                 to_string(profile.device), whole, kernels.milliseconds,
                                 100.0 * kernels.milliseconds / whole, kernels.calls);
  if (profile.in_graph) text += "; replays of a graph with marks around each kernel";
  if (profile.plain_milliseconds) text += fmt::format("; a step before it took {:.2f} ms", *profile.plain_milliseconds);
  return text + "\n";
}

}  // namespace

std::string profile_tables(const Profile& profile) {
  double whole = 0.0;
  for (const ProfiledStep& step : profile.steps) whole += step.milliseconds / static_cast<double>(profile.steps.size());
  const auto all = costs(profile, [](const ProfiledKernel&) { return "all"; });
  const Cost kernels = all.empty() ? Cost{} : all.front().second;
  const auto rows = costs(profile, [](const ProfiledKernel& kernel) {
    return fmt::format("  {:<10} {:<22} {}", kernel.phase, group_of(kernel), label_of(kernel));
  });
  size_t width = 52;
  for (const auto& [name, cost] : rows) width = std::max(width, name.size() + 1);

  std::string text = headline(profile, whole, kernels) + "\n" + by_layer(profile, width, whole);
  text += fmt::format("\n{:<{}}{}", "by kernel", width, kProfileColumns);
  for (const auto& [name, cost] : costs(profile, [](const ProfiledKernel& kernel) { return kernel.name; })) {
    text += fmt::format("  {:<{}}", name, width - 2) + columns(cost, whole);
  }
  const Cost between{.milliseconds = whole - kernels.milliseconds};
  text += fmt::format("  {:<{}}{:>10.3f}{:>7.1f}\n", "(between kernels: copies, allocations, waiting)", width - 2,
                      between.milliseconds, 100.0 * between.milliseconds / whole);

  text += fmt::format("\n{:<{}}{}",
                      rows.size() > kRows ? fmt::format("by layer and kernel, the longest {} of {}", kRows, rows.size())
                                          : "by layer and kernel",
                      width, kProfileColumns);
  for (size_t i = 0; i < std::min(rows.size(), kRows); ++i) {
    text += fmt::format("{:<{}}", rows[i].first, width) + columns(rows[i].second, whole);
  }
  return text;
}

std::string profile_trace(const Profile& profile) {
  ChromeTrace trace(to_string(profile.device));
  double start = 0.0;  // of the step, in microseconds
  for (const ProfiledStep& step : profile.steps) {
    std::string phase;
    for (const ProfiledKernel& kernel : step.kernels) {
      const double begin = start + 1e3 * kernel.begin;
      if (kernel.phase != phase) trace.enter_phase(kernel.phase, begin);
      phase = kernel.phase;
      trace.enter_layer(kernel.layer, begin);
      trace.allocated(kernel.allocated, begin);
      trace.kernel(label_of(kernel), begin, start + 1e3 * kernel.end);
    }
    start += 1e3 * step.milliseconds;
    trace.enter_phase("", start);
  }
  return trace.text();
}

}  // namespace heddle
