// What `heddle bench` prints and writes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tools/benchmark.h"

namespace heddle {

// A figure measured elsewhere: milliseconds or MiB.
struct PublishedFigure {
  std::string suite, gpu, config, pass, quantity;
  int64_t n = 0;
  std::string provider;
  double value = 0.0;
};

// Reads a CSV with the header suite,gpu,config,pass,quantity,n,provider,value. Throws ConfigError at a line
// that is none.
std::vector<PublishedFigure> read_published(const std::string& path);

// The smallest published figure that a row compares with; nullptr when there is none.
const PublishedFigure* best_published(std::span<const PublishedFigure> figures, const BenchmarkRow& row);

// One line for people; the published figure, if any, is marked as measured elsewhere.
std::string table_header();
std::string table_line(const BenchmarkRow& row, const PublishedFigure* published);

std::string to_json(std::span<const BenchmarkRow> rows);
// Names with commas or quotes, as those of cases have, are quoted as RFC 4180 says.
std::string to_csv(std::span<const BenchmarkRow> rows);

// A chart of value over n, one line a config, as SVG; both axes logarithmic.
std::string to_svg(std::span<const BenchmarkRow> rows, const std::string& title, const std::string& unit);

}  // namespace heddle
