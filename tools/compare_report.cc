#include "tools/compare_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/io/json_text.h"
#include "core/runtime/memory_stats.h"
#include "core/runtime/unsigned_nan.h"
#include "tools/svg.h"

namespace heddle {
namespace {

using Cells = std::vector<std::string>;

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Standard deviation of the values, of which there are two at least, as a sample of all seeds.
double deviation(const std::vector<double>& values) {
  const double middle = mean(values);
  double sum = 0.0;
  for (const double value : values) sum += (value - middle) * (value - middle);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

// "1.8123", or "1.8123 ± 0.0041" of several seeds.
std::string with_spread(const std::vector<double>& values, double scale, int digits) {
  const std::string middle = fmt::format("{:.{}f}", unsigned_nan(scale * mean(values)), digits);
  if (values.size() < 2) return middle;
  return fmt::format("{} ± {:.{}f}", middle, unsigned_nan(scale * deviation(values)), digits);
}

const char* loss_unit(const Comparison& comparison) { return comparison.is_text ? "nats/byte" : "nats/token"; }

Cells header(const Comparison& comparison) {
  Cells cells = {"model", "parameters", loss_unit(comparison)};
  const ComparedModel& first = comparison.models.front();
  if (!first.recalls.empty()) cells.push_back("recall %");
  for (const TrainingSpeed& speed : first.training) cells.push_back(fmt::format("train {}", speed.length));
  for (const GenerationSpeed& speed : first.generation) cells.push_back(fmt::format("generate {}", speed.context));
  for (const GenerationSpeed& speed : first.generation) cells.push_back(fmt::format("state {}", speed.context));
  cells.push_back("peak");
  return cells;
}

// The text, in which a table takes nothing for its own lines.
std::string table_cell(const std::string& text) {
  std::string safe;
  for (const char character : text) {
    if (character == '|') safe += '\\';
    safe += character == '\n' || character == '\r' ? ' ' : character;
  }
  return safe;
}

Cells row(const ComparedModel& model) {
  Cells cells = {table_cell(model.name), std::to_string(model.parameters), with_spread(model.losses, 1.0, 4)};
  if (!model.recalls.empty()) cells.push_back(with_spread(model.recalls, 100.0, 1));
  for (const TrainingSpeed& speed : model.training) cells.push_back(fmt::format("{:.0f}", speed.tokens_per_second));
  for (const GenerationSpeed& speed : model.generation) cells.push_back(fmt::format("{:.0f}", speed.tokens_per_second));
  for (const GenerationSpeed& speed : model.generation) cells.push_back(format_bytes(speed.state_bytes));
  cells.push_back(format_bytes(model.peak_bytes));
  return cells;
}

// Characters of a text in UTF-8.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }));
}

std::string markdown(std::vector<Cells> rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const Cells& cells : rows) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], width_of(cells[i]));
  }
  Cells rule;
  for (size_t i = 0; i < widths.size(); ++i) rule.push_back(std::string(widths[i] - 1, '-') + (i == 0 ? "-" : ":"));
  rows.insert(rows.begin() + 1, rule);
  std::string text;
  for (const Cells& cells : rows) {
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string room(widths[i] - width_of(cells[i]), ' ');
      text += i == 0 ? "| " + cells[i] + room : " | " + room + cells[i];
    }
    text += " |\n";
  }
  return text;
}

std::string explanation(const Comparison& comparison) {
  const bool has_recall = !comparison.models.front().recalls.empty();
  std::string text = fmt::format(
      "\n{}: validation loss after {} steps of {} tokens{}\n", loss_unit(comparison), comparison.steps,
      comparison.step_tokens,
      comparison.seeds > 1 ? fmt::format(", mean and standard deviation of {} seeds", comparison.seeds) : "");
  if (has_recall) {
    text += fmt::format("recall: right answers on mqar after {} steps\n", comparison.recall_steps);
  }
  text += "train N: tokens/s in training at length N; generate N: tokens/s after N tokens; state N: its bytes then\n";
  text += "peak: memory at the peak of a training step\n";
  return text;
}

std::string legend(const ComparedModel& model) {
  std::string text = fmt::format("{}: {:.3f}", model.name, unsigned_nan(mean(model.losses)));
  if (!model.recalls.empty()) text += fmt::format(", {:.0f} %", unsigned_nan(100.0 * mean(model.recalls)));
  return text;
}

}  // namespace

std::string to_text(const Comparison& comparison) {
  std::vector<Cells> rows = {header(comparison)};
  for (const ComparedModel& model : comparison.models) rows.push_back(row(model));
  return markdown(std::move(rows)) + explanation(comparison);
}

std::string to_json(const Comparison& comparison) {
  using OrderedJson = nlohmann::ordered_json;
  OrderedJson models = OrderedJson::array();
  for (const ComparedModel& model : comparison.models) {
    OrderedJson training = OrderedJson::array(), generation = OrderedJson::array();
    for (const TrainingSpeed& speed : model.training) {
      training.push_back(
          {{"length", speed.length}, {"batch_size", speed.batch_size}, {"tokens_per_second", speed.tokens_per_second}});
    }
    for (const GenerationSpeed& speed : model.generation) {
      generation.push_back({{"context", speed.context},
                            {"tokens_per_second", speed.tokens_per_second},
                            {"state_bytes", speed.state_bytes}});
    }
    models.push_back({{"name", model.name},
                      {"parameters", model.parameters},
                      {"validation_loss", model.losses},
                      {"recall", model.recalls},
                      {"training", training},
                      {"generation", generation},
                      {"peak_bytes", model.peak_bytes}});
  }
  const OrderedJson json{{"device", to_string(comparison.device)},
                         {"threads", comparison.threads},
                         {"seed", comparison.seed},
                         {"seeds", comparison.seeds},
                         {"steps", comparison.steps},
                         {"step_tokens", comparison.step_tokens},
                         {"recall_steps", comparison.recall_steps},
                         {"loss_unit", loss_unit(comparison)},
                         {"models", models}};
  return json_text(json, 1) + "\n";
}

std::string to_svg(const Comparison& comparison) {
  std::vector<SvgLine> lines;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ComparedModel& model = comparison.models[i];
    SvgLine training{.label = legend(model), .points = {}, .color = svg_color(i)};
    SvgLine generation{.label = "", .points = {}, .color = svg_color(i), .is_dashed = true};
    for (const TrainingSpeed& speed : model.training) {
      training.points.emplace_back(static_cast<double>(speed.length), speed.tokens_per_second);
    }
    for (const GenerationSpeed& speed : model.generation) {
      generation.points.emplace_back(static_cast<double>(speed.context), speed.tokens_per_second);
    }
    lines.push_back(std::move(training));
    lines.push_back(std::move(generation));
  }
  const bool has_recall = !comparison.models.front().recalls.empty();
  return svg_lines(fmt::format("tokens/s in training (solid) and generation (dashed); legend: {}{}",
                               loss_unit(comparison), has_recall ? ", recall" : ""),
                   "length of a sequence; tokens read before generation", "tokens/s", lines);
}

}  // namespace heddle
