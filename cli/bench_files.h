// The files of `heddle bench`: rows as JSON and CSV, and charts.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tools/benchmark.h"

namespace heddle::cli {

// Each file is written anew with every row, so that an end of the process at any time keeps what was measured. What is
// no regular file (/dev/stdout, a pipe) is written once, by finish().
class BenchFiles {
 public:
  // Empty paths ask for nothing; `plot` is a folder, which is made. Throws UsageError for a path that cannot be
  // written, and touches no file.
  BenchFiles(std::filesystem::path json, std::filesystem::path csv, std::filesystem::path plot);

  void add(const BenchmarkRow& row);
  void finish() const;

 private:
  void write(bool regular) const;

  std::filesystem::path json_, csv_, plot_;
  std::vector<BenchmarkRow> rows_;
  std::map<std::string, std::vector<BenchmarkRow>> charts_;  // by suite, pass and quantity
};

}  // namespace heddle::cli
