#include "tools/memory_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config/config_scalar.h"
#include "core/io/json_text.h"

namespace heddle {
namespace {

// --- The tree

void insert(LayerTree& tree, std::string_view path, const CategoryBytes& bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) tree.bytes[i] += bytes[i];
  if (path.empty()) return;
  const size_t dot = path.find('.');
  const std::string_view first = path.substr(0, dot);
  auto child = std::find_if(tree.children.begin(), tree.children.end(),
                            [&](const LayerTree& known) { return known.name == first; });
  if (child == tree.children.end()) child = tree.children.insert(child, LayerTree{std::string(first), 1, {}, {}});
  insert(*child, dot == std::string_view::npos ? "" : path.substr(dot + 1), bytes);
}

void add_own_bytes(LayerTree& tree) {
  if (tree.children.empty()) return;
  CategoryBytes own = tree.bytes;
  for (LayerTree& child : tree.children) {
    add_own_bytes(child);
    for (size_t i = 0; i < own.size(); ++i) own[i] -= child.bytes[i];
  }
  if (total(own) > 0) tree.children.push_back({"(own)", 1, own, {}});
}

bool holds_the_same(const LayerTree& a, const LayerTree& b) {
  return a.bytes == b.bytes &&
         std::equal(a.children.begin(), a.children.end(), b.children.begin(), b.children.end(),
                    [](const LayerTree& x, const LayerTree& y) { return x.name == y.name && holds_the_same(x, y); });
}

std::optional<int64_t> number_in(const std::string& name) { return number_of<int64_t>(name); }

// "0-2,4-6,8" of 0, 1, 2, 4, 5, 6, 8.
std::string ranges(const std::vector<int64_t>& numbers) {
  std::string text;
  for (size_t first = 0; first < numbers.size();) {
    size_t last = first;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", numbers[first]);
    if (last > first) text += fmt::format("-{}", numbers[last]);
    first = last + 1;
  }
  return text;
}

// Joins numbered layers that hold the same, and sorts by size.
void fold(LayerTree& tree) {
  for (LayerTree& child : tree.children) fold(child);
  std::stable_sort(tree.children.begin(), tree.children.end(), [](const LayerTree& a, const LayerTree& b) {
    return number_in(a.name).value_or(-1) < number_in(b.name).value_or(-1);
  });
  std::vector<LayerTree> folded;
  std::vector<std::vector<int64_t>> numbers;  // of the layers that a line stands for
  for (LayerTree& child : tree.children) {
    const std::optional<int64_t> number = number_in(child.name);
    size_t same = 0;
    while (same < folded.size() && !(number && !numbers[same].empty() && holds_the_same(child, folded[same]))) ++same;
    if (same == folded.size()) {
      folded.push_back(std::move(child));
      numbers.emplace_back();
    } else {
      ++folded[same].count;
    }
    if (!number) continue;
    numbers[same].push_back(*number);
    folded[same].name = ranges(numbers[same]);
  }
  const auto size = [](const LayerTree& line) { return total(line.bytes) * static_cast<size_t>(line.count); };
  std::stable_sort(folded.begin(), folded.end(),
                   [&](const LayerTree& a, const LayerTree& b) { return size(a) > size(b); });
  tree.children = std::move(folded);
}

// --- Text

std::string bar(size_t bytes, size_t whole) {
  constexpr double kWidth = 30;
  const double part = whole > 0 ? static_cast<double>(bytes) / static_cast<double>(whole) : 0.0;
  return std::string(static_cast<size_t>(std::lround(part * kWidth)), '#');
}

std::string line(std::string_view what, size_t bytes, size_t whole, std::string_view more = "") {
  const double percent = whole > 0 ? 100.0 * static_cast<double>(bytes) / static_cast<double>(whole) : 0.0;
  const std::string text = fmt::format("  {:<28} {:>11} {:>5.1f} %  {:<30}  {}", what, format_bytes(bytes), percent,
                                       bar(bytes, whole), more);
  return text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
}

std::string by_category(const CategoryBytes& bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == 0) continue;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", name(static_cast<MemoryCategory>(i)), format_bytes(bytes[i]));
  }
  return text;
}

// Deeper levels of the tree are in the JSON only.
constexpr int kDepth = 3;

std::string tree_text(const LayerTree& tree, size_t whole, size_t copies, int depth) {
  std::string text;
  if (depth == kDepth) return text;
  for (const LayerTree& child : tree.children) {
    const size_t count = copies * static_cast<size_t>(child.count);
    const size_t bytes = total(child.bytes) * count;
    std::string more = by_category(child.bytes);
    if (count > 1) more = fmt::format("{} x {}: {}", count, format_bytes(total(child.bytes)), more);
    text += line(std::string(static_cast<size_t>(2 * depth), ' ') + child.name, bytes, whole, more);
    text += tree_text(child, whole, count, depth + 1);
  }
  return text;
}

std::string phase_name(const MemoryPhase& phase) { return phase.name.empty() ? "before" : phase.name; }

// Of phases with the same name the one with the most, in the order of their first.
std::vector<const MemoryPhase*> largest_phases(const MemoryReport& report) {
  std::vector<const MemoryPhase*> largest;
  for (const MemoryPhase& phase : report.phases) {
    const auto known = std::find_if(largest.begin(), largest.end(),
                                    [&](const MemoryPhase* other) { return other->name == phase.name; });
    if (known == largest.end()) {
      largest.push_back(&phase);
    } else if (total(phase.at_peak) > total((*known)->at_peak)) {
      *known = &phase;
    }
  }
  return largest;
}

std::string phases_text(const MemoryReport& report) {
  std::string text = fmt::format("\n{:<14} {:>11} {:>11}  at the most\n", "phase", "most", "at its end");
  for (const MemoryPhase* phase : largest_phases(report)) {
    text += fmt::format("  {:<12} {:>11} {:>11}  {}\n", phase_name(*phase), format_bytes(total(phase->at_peak)),
                        format_bytes(total(phase->at_end)), by_category(phase->at_peak));
  }
  return text;
}

std::string kept_text(const TrainingMemory& memory) {
  const int64_t tokens = memory.batch_size / memory.processes * memory.sequence_length;
  const LayerTree tree = layer_tree(memory.kept);
  std::string text = fmt::format("\nkept for backward: {:.0f} bytes a token\n",
                                 static_cast<double>(total(tree.bytes)) / static_cast<double>(tokens));
  const auto add = [&](const LayerTree& parent, size_t copies, int depth, const auto& self) -> void {
    if (depth == kDepth) return;
    for (const LayerTree& child : parent.children) {
      const size_t count = copies * static_cast<size_t>(child.count);
      const double bytes = static_cast<double>(total(child.bytes)) / static_cast<double>(tokens);
      const std::string name = std::string(static_cast<size_t>(2 * depth), ' ') + child.name;
      text += fmt::format("  {:<28} {:>11.1f}{}\n", name, bytes * static_cast<double>(count),
                          count > 1 ? fmt::format("  {} x {:.1f}", count, bytes) : "");
      self(child, count, depth + 1, self);
    }
  };
  add(tree, 1, 0, add);
  return text;
}

std::string grid_text(const std::vector<GridPeak>& grid) {
  std::string text = fmt::format("\n{:>10} {:>10} {:>12} {:>12}\n", "batch", "length", "peak", "reserved");
  for (const GridPeak& cell : grid) {
    text += fmt::format("{:>10} {:>10} {:>12} {:>12}\n", cell.batch_size, cell.sequence_length,
                        format_bytes(cell.peak.allocated), format_bytes(cell.peak.reserved));
  }
  return text;
}

std::string largest_text(const LargestFit& fit) {
  if (fit.value == 0) return fmt::format("none: {} takes {}", fit.next, format_bytes(fit.above.reserved));
  const std::string text = fmt::format("{}, which takes {}", fit.value, format_bytes(fit.peak.reserved));
  if (fit.next == 0) return text + "; a config may have no more";
  return text + fmt::format("; {} takes {}", fit.next, format_bytes(fit.above.reserved));
}

std::string fit_text(const TrainingMemory& memory) {
  const MemoryFit& fit = *memory.fit;
  std::string text = fmt::format("\nfits {}\n", format_bytes(fit.limit_bytes));
  text += fmt::format("  at length {:<6} largest batch: {}\n", memory.sequence_length, largest_text(fit.batch_size));
  if (fit.sequence_length) {
    text += fmt::format("  at batch {:<7} largest length: {}\n", memory.batch_size, largest_text(*fit.sequence_length));
  }
  text += fmt::format("what would buy more\n  {:<46} {:>11}  {}\n", "", "peak", "largest batch");
  text += fmt::format("  {:<46} {:>11}  {}\n", "(as it is)", format_bytes(total(sum(memory.report.layers))),
                      fit.batch_size.value);
  for (const MemorySaving& saving : fit.savings) {
    text +=
        fmt::format("  {:<46} {:>11}  {}\n", saving.change, format_bytes(saving.peak_bytes), saving.batch_size.value);
  }
  return text;
}

// --- JSON

using OrderedJson = nlohmann::ordered_json;

OrderedJson json_of(const CategoryBytes& bytes) {
  OrderedJson json = OrderedJson::object();
  for (size_t i = 0; i < bytes.size(); ++i) json[std::string(name(static_cast<MemoryCategory>(i)))] = bytes[i];
  return json;
}

OrderedJson json_of(const StepPeak& peak) {
  return {{"peak_bytes", peak.allocated}, {"reserved_bytes", peak.reserved}};
}

OrderedJson json_of(const LargestFit& fit) {
  OrderedJson json{{"largest", fit.value}, {"with_it", json_of(fit.peak)}, {"with_the_next", nullptr}};
  if (fit.next > 0) json["with_the_next"] = json_of(fit.above);
  return json;
}

OrderedJson json_of(const LayerBytes& layers) {
  OrderedJson json = OrderedJson::array();
  for (const auto& [layer, bytes] : layers) {
    json.push_back({{"layer", layer}, {"bytes", total(bytes)}, {"categories", json_of(bytes)}});
  }
  return json;
}

OrderedJson json_of(const MemoryFit& fit) {
  OrderedJson json{{"limit_bytes", fit.limit_bytes}, {"batch_size", json_of(fit.batch_size)}};
  if (fit.sequence_length) json["sequence_length"] = json_of(*fit.sequence_length);
  json["savings"] = OrderedJson::array();
  for (const MemorySaving& saving : fit.savings) {
    json["savings"].push_back(
        {{"change", saving.change}, {"peak_bytes", saving.peak_bytes}, {"batch_size", json_of(saving.batch_size)}});
  }
  return json;
}

}  // namespace

LayerTree layer_tree(const LayerBytes& layers) {
  LayerTree tree;
  for (const auto& [layer, bytes] : layers) {
    if (total(bytes) > 0) insert(tree, layer.empty() ? "(shared)" : layer, bytes);
  }
  add_own_bytes(tree);
  fold(tree);
  return tree;
}

std::string to_text(const MemoryReport& report) {
  const MemoryStats& stats = report.stats;
  const size_t peak = stats.allocated.peak;
  const std::string layer = report.peak_layer.empty() ? "" : " in " + report.peak_layer;
  std::string text = fmt::format("peak on {}: {} allocated ({} bytes), {} reserved; reached {}{}\n",
                                 to_string(report.device), format_bytes(peak), peak, format_bytes(stats.reserved.peak),
                                 phase_name(report.phases[report.peak_phase]), layer);
  text += "\nat the peak, by category\n";
  const CategoryBytes categories = sum(report.layers);
  std::vector<size_t> order;
  for (size_t i = 0; i < categories.size(); ++i) {
    if (categories[i] > 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return categories[a] > categories[b]; });
  for (const size_t i : order) text += line(name(static_cast<MemoryCategory>(i)), categories[i], peak);
  text += "\nat the peak, by layer\n" + tree_text(layer_tree(report.layers), peak, 1, 0);
  return text + phases_text(report);
}

std::string to_text(const TrainingMemory& memory) {
  const std::string processes =
      memory.processes > 1 ? fmt::format(", the first of {} processes", memory.processes) : "";
  std::string text = fmt::format("{} parameters, batch {} x {} tokens, {}{}\n{}", memory.parameters, memory.batch_size,
                                 memory.sequence_length, name(memory.dtype), processes, to_text(memory.report));
  text += kept_text(memory);
  if (!memory.grid.empty()) text += grid_text(memory.grid);
  if (memory.fit) text += fit_text(memory);
  return text;
}

std::string to_json(const TrainingMemory& memory) {
  const MemoryReport& report = memory.report;
  OrderedJson json{{"device", to_string(report.device)},
                   {"dtype", name(memory.dtype)},
                   {"parameters", memory.parameters},
                   {"batch_size", memory.batch_size},
                   {"sequence_length", memory.sequence_length},
                   {"peak_bytes", report.stats.allocated.peak},
                   {"allocated_bytes", report.stats.allocated.current},
                   {"reserved_peak_bytes", report.stats.reserved.peak},
                   {"reserved_bytes", report.stats.reserved.current},
                   {"peak_phase", phase_name(report.phases[report.peak_phase])},
                   {"peak_layer", report.peak_layer},
                   {"categories", json_of(sum(report.layers))},
                   {"layers", json_of(report.layers)}};
  if (memory.processes > 1) json["processes"] = memory.processes;
  for (const MemoryPhase& phase : report.phases) {
    json["phases"].push_back(
        {{"phase", phase_name(phase)}, {"at_end", json_of(phase.at_end)}, {"at_peak", json_of(phase.at_peak)}});
  }
  for (const auto& [layer, bytes] : memory.kept) {
    const int64_t sequences = memory.batch_size / memory.processes;
    const auto tokens = static_cast<double>(sequences * memory.sequence_length);
    json["kept_for_backward"].push_back(
        {{"layer", layer}, {"bytes", total(bytes)}, {"bytes_per_token", static_cast<double>(total(bytes)) / tokens}});
  }
  for (const GridPeak& cell : memory.grid) {
    OrderedJson row{{"batch_size", cell.batch_size}, {"sequence_length", cell.sequence_length}};
    row.update(json_of(cell.peak));
    json["grid"].push_back(row);
  }
  if (memory.fit) json["fit"] = json_of(*memory.fit);
  return json_text(json, 1) + "\n";
}

}  // namespace heddle
