#include "tools/benchmark_report.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/config/config_error.h"
#include "core/config/config_scalar.h"
#include "core/io/json_text.h"
#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "core/runtime/utf8.h"
#include "tools/svg.h"

namespace heddle {
namespace {

constexpr std::string_view kPublishedHeader = "suite,gpu,config,pass,quantity,n,provider,value";

const char* unit_of(const BenchmarkRow& row) { return row.quantity == BenchmarkQuantity::speed ? "ms" : "MiB"; }

nlohmann::ordered_json json_of(const BenchmarkRow& row) {
  return {{"suite", row.suite},
          {"config", row.config},
          {"pass", name(row.pass)},
          {"quantity", name(row.quantity)},
          {"n", row.n},
          {"dtype", name(row.dtype)},
          {"device", row.device},
          {"value", row.value},
          {"unit", unit_of(row)},
          {"bytes", row.bytes},
          {"gbps", row.gbps},
          {"copy_fraction", row.copy_fraction},
          {"tflops", row.tflops},
          {"tokens_per_second", row.tokens_per_second},
          {"gemm_fraction", row.gemm_fraction}};
}

// As RFC 4180 writes a field.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted;
  for (const char character : text) quoted += character == '"' ? "\"\"" : std::string(1, character);
  return '"' + quoted + '"';
}

}  // namespace

std::vector<PublishedFigure> read_published(const std::string& path) {
  std::ifstream file(path);
  check(file.good(), "{}: cannot be read", path);
  std::vector<PublishedFigure> figures;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto refuse = [&](const std::string& message) { throw ConfigError({path, number, 1}, message); };
    if (line.ends_with('\r')) line.pop_back();
    if (number == 1) {
      if (line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
      if (line != kPublishedHeader) refuse(fmt::format("found '{}', expected {}", line, kPublishedHeader));
      continue;
    }
    if (line.empty()) continue;
    std::vector<std::string> fields;
    std::stringstream stream(line);
    for (std::string field; std::getline(stream, field, ',');) fields.push_back(field);
    if (fields.size() != 8) {
      refuse(fmt::format("found {} field{}, expected 8", fields.size(), fields.size() == 1 ? "" : "s"));
    }
    const auto n = number_of<int64_t>(fields[5]);
    const auto value = number_of<double>(fields[7]);
    if (!n || !value) refuse(fmt::format("found n '{}' and value '{}', expected numbers", fields[5], fields[7]));
    if (*value <= 0) refuse(fmt::format("found the value {}, expected a number > 0", fields[7]));
    figures.push_back({fields[0], fields[1], fields[2], fields[3], fields[4], *n, fields[6], *value});
  }
  return figures;
}

const PublishedFigure* best_published(std::span<const PublishedFigure> figures, const BenchmarkRow& row) {
  // Published backward passes add to gradients that exist.
  if (row.pass == BenchmarkPass::bwd_first) return nullptr;
  const PublishedFigure* best = nullptr;
  for (const PublishedFigure& figure : figures) {
    const bool same = figure.suite == row.suite && figure.config == row.config && figure.pass == name(row.pass) &&
                      figure.quantity == name(row.quantity) && figure.n == row.n;
    if (same && (best == nullptr || figure.value < best->value)) best = &figure;
  }
  return best;
}

std::string table_header() {
  return fmt::format("{:<14} {:<22} {:<9} {:<6} {:>7} {:>11} {:<3} {:>8} {:>6} {:>9} {:>9} {:>6}  {}", "suite",
                     "config", "pass", "what", "n", "value", "", "GB/s", "copy", "TFLOP/s", "tokens/s", "GEMM",
                     "best published, measured elsewhere");
}

std::string table_line(const BenchmarkRow& row, const PublishedFigure* published) {
  std::string line = fmt::format("{:<14} {:<22} {:<9} {:<6} {:>7} {:>11.4f} {:<3}", row.suite, row.config,
                                 name(row.pass), name(row.quantity), row.n, unsigned_nan(row.value), unit_of(row));
  line += row.gbps > 0.0 ? fmt::format(" {:>8.0f}", row.gbps) : std::string(9, ' ');
  line += row.copy_fraction > 0.0 ? fmt::format(" {:>6.3f}", row.copy_fraction) : std::string(7, ' ');
  line += row.tflops > 0.0 ? fmt::format(" {:>9.4g}", row.tflops) : std::string(10, ' ');
  line += row.tokens_per_second > 0.0 ? fmt::format(" {:>9.0f}", row.tokens_per_second) : std::string(10, ' ');
  line += row.gemm_fraction > 0.0 ? fmt::format(" {:>6.3f}", row.gemm_fraction) : std::string(7, ' ');
  if (published != nullptr) {
    line += fmt::format("  {:.4f} {} ({}, {})", published->value, unit_of(row), published->provider, published->gpu);
  }
  return line;
}

std::string to_json(std::span<const BenchmarkRow> rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const BenchmarkRow& row : rows) json.push_back(json_of(row));
  return json_text(json, 1) + "\n";
}

std::string to_csv(std::span<const BenchmarkRow> rows) {
  std::string text =
      "suite,config,pass,quantity,n,dtype,device,value,unit,bytes,gbps,copy_fraction,tflops,tokens_per_second,"
      "gemm_fraction\n";
  for (const BenchmarkRow& row : rows) {
    text += fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n", csv_field(row.suite), csv_field(row.config),
                        name(row.pass), name(row.quantity), row.n, name(row.dtype), row.device, unsigned_nan(row.value),
                        unit_of(row), row.bytes, unsigned_nan(row.gbps), unsigned_nan(row.copy_fraction),
                        unsigned_nan(row.tflops), unsigned_nan(row.tokens_per_second), unsigned_nan(row.gemm_fraction));
  }
  return text;
}

std::string to_svg(std::span<const BenchmarkRow> rows, const std::string& title, const std::string& unit) {
  std::map<std::string, SvgLine> by_config;
  for (const BenchmarkRow& row : rows) {
    by_config[row.config].points.emplace_back(static_cast<double>(std::max<int64_t>(row.n, 1)),
                                              std::max(row.value, 1e-9));
  }
  std::vector<SvgLine> lines;
  for (auto& [config, line] : by_config) {
    std::sort(line.points.begin(), line.points.end());
    line.label = config;
    line.color = svg_color(lines.size());
    lines.push_back(std::move(line));
  }
  return svg_lines(title, "n", unit, lines);
}

}  // namespace heddle
