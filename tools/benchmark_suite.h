// A benchmark suite as configs/bench/*.yaml describes it.                                        docs/performance.md
//
//   operator: srms_norm                 # the default of every config
//   dtype: bfloat16
//   n: [1024, 2048]                     # the sizes; `n` in shapes and options stands for one of them
//   configs:
//     residual:
//       operator: rms_norm
//       options: {return_residual: false}                     # a number in it may be an extent: shape: [n, n]
//       inputs: {x: [4, n, 2048], residual: [4, n, 2048]}     # extents: n, a number, n*n+10, 4096/n
//       index_bounds: {targets: 50304}                        # index inputs are drawn from [0, bound): each needs one
//       moved: {fwd: [x, residual, y], bwd: [x, residual, d_y, d_x, d_residual]}
//       flops: {fwd: 2*n*2048, bwd: 4*n*2048}                 # extents, too; not needed
//       passes: [fwd]                                         # those that make sense; not given: all
//
// `moved` names what must be read or written once: an input, an output, or the gradient of one. Inputs of full
// precision (angles, decays, states) have a gradient only where it is named. `flops` says how many floating-point
// operations a pass takes at least, a multiplication and an addition being two.
//
// A suite of training steps has the key `training` in place of `configs`, and lists files of training configs, relative
// to its own, by the type of the device on which they are measured:
//   training:
//     cpu: [train_toy_cpu.yaml]
//     cuda: [train_toy_gpu.yaml, train_1b.yaml]
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config/config_node.h"
#include "core/runtime/device.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"
#include "layers/registry.h"
#include "trainers/train_config.h"

namespace heddle {

// Of an operator, fwd · bwd: adds to gradients that exist · bwd_first: writes fresh ones. Of a training config, step.
enum class BenchmarkPass { fwd, bwd, bwd_first, step };
std::string_view name(BenchmarkPass pass);
// "fwd" or "bwd": what `moved` and `flops` call the pass of an operator.
std::string direction_of(BenchmarkPass pass);

struct BenchmarkConfig {
  std::string name;
  std::string operator_name;
  ConfigNode node;     // what it was read from: errors are reported there
  ConfigNode options;  // as written
  DType dtype = DType::bfloat16;
  std::vector<int64_t> sizes;
  std::vector<std::pair<std::string, std::vector<std::string>>> inputs;  // name and extents as written
  std::map<std::string, DType> input_dtypes;                             // where it is not that of the config
  std::map<std::string, int64_t> index_bounds;                           // of index inputs: drawn from [0, bound)
  std::map<std::string, std::vector<std::string>> moved;  // "fwd", "bwd"; not there: all that the pass reads or writes
  std::map<std::string, std::string> flops;               // "fwd", "bwd", as written; not there: not known
  std::vector<BenchmarkPass> passes = {BenchmarkPass::fwd, BenchmarkPass::bwd, BenchmarkPass::bwd_first};

  // The options at one size. Throws Error for an extent that is no sum of products and quotients, or beyond an int64.
  ConfigNode options_at(int64_t n) const;
  // The shape of an input at one size. Throws Error for an extent that is no sum of products and quotients, or beyond
  // an int64.
  Shape shape_of(const std::vector<std::string>& extents, int64_t n) const;
  // Whether a shape holds n: else another size would change nothing but the name of the row.
  bool depends_on_n() const;
};

// A training config whose steps are measured.
struct BenchmarkTraining {
  std::string name;  // of its file, without folder and ending
  std::string file;
  std::set<DeviceType> devices;  // for which the suite lists it
  TrainConfig config;
};

// Has configs of operators or training configs.
struct BenchmarkSuite {
  std::string name;
  std::string published;  // CSV of figures measured elsewhere, or empty
  std::vector<BenchmarkConfig> configs;
  std::vector<BenchmarkTraining> training;
  std::vector<std::filesystem::path> files;  // that it was read from; none: it is one of cases

  // Names of the configs of both kinds.
  std::vector<std::string> config_names() const;
};

// Reads configs/bench/NAME.yaml of the first of share_folders() that has it, or the file itself when `name_or_path`
// ends in .yaml or .yml; for the name of an operator that has no such file, the suite of its cases. Throws ConfigError,
// and UsageError for a name that is neither.
BenchmarkSuite load_benchmark_suite(const std::string& name_or_path, const Registry& registry = built_in_registry());

// Throws ConfigError where an index input may have more values at this size than its operator has rows or classes for.
// load_benchmark_suite() does so for the first size of each config.
void check_index_bounds(const BenchmarkConfig& config, const Operator& op, int64_t n);

// The large cases of an operator, or all where none is large, with n the number of elements of the first input.
BenchmarkSuite suite_of_cases(const Operator& op);

// "n*n+8/n" with n = 4 is 18. Throws Error, also for a quotient that leaves a rest, and when an int64 cannot hold it.
int64_t evaluate_extent(const std::string& text, int64_t n);

}  // namespace heddle
