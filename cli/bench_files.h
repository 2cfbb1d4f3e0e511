// The files of `heddle bench`: rows as JSON and CSV, and charts.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tools/benchmark.h"
#include "tools/benchmark_suite.h"

namespace heddle::cli {

// Each file is written anew with every row, so that an end of the process at any time keeps what was measured. What is
// no regular file (/dev/stdout, a pipe) is written once, by finish().
class BenchFiles {
 public:
  // Empty paths ask for nothing; `plot` is a folder, which is made. Throws UsageError for a path that cannot be
  // written, or that would replace a file of the suites or another path, and touches no file.
  BenchFiles(std::filesystem::path json, std::filesystem::path csv, std::filesystem::path plot,
             std::span<const BenchmarkSuite> suites);

  void add(const BenchmarkRow& row);
  void finish() const;

 private:
  void write(bool regular) const;

  std::filesystem::path json_, csv_, plot_;
  std::vector<BenchmarkRow> rows_;
  std::map<std::string, std::vector<BenchmarkRow>> charts_;  // by suite, pass and quantity
};

}  // namespace heddle::cli
