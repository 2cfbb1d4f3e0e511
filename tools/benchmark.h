// Measures operators: speed and, through the allocator, memory; and training steps.             docs/performance.md
//
// Speed: before every timed call a buffer of eight times the L2 is overwritten; device events around the call; 25 ms of
// warm-up, 100 ms of repeats; the median. Inputs are random normal numbers. Memory: the mean over 20 repeats of the
// peak of allocated bytes, inputs included; for backward the forward's outputs and the upstream gradient are alive.
// benchmark_training.h says how training steps are measured.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/context.h"
#include "layers/registry.h"
#include "tools/benchmark_suite.h"

namespace heddle {

enum class BenchmarkQuantity { speed, memory };

std::string_view name(BenchmarkQuantity quantity);

struct BenchmarkRow {
  std::string suite, config;
  BenchmarkPass pass = BenchmarkPass::fwd;
  BenchmarkQuantity quantity = BenchmarkQuantity::speed;
  int64_t n = 0;  // of a training step: its number of tokens
  DType dtype = DType::bfloat16;
  std::string device;
  double value = 0.0;              // milliseconds or MiB
  int64_t bytes = 0;               // that must move; 0 for a training step
  double gbps = 0.0;               // 10^9 bytes a second; 0 for memory
  double copy_fraction = 0.0;      // of the copy rate; 0 for memory
  double tflops = 0.0;             // 10^12 operations a second; 0 for memory, and where the suite does not say how many
  double tokens_per_second = 0.0;  // of a training step; 0 elsewhere, and for memory
  double gemm_fraction = 0.0;      // tflops of a training step over those of one large matrix product; 0 elsewhere
};

struct BenchmarkOptions {
  // The sizes to measure; empty: those of the suite. A config with fixed shapes is measured only if its size is listed,
  // and training configs are left out where sizes are given.
  std::vector<int64_t> sizes;
  std::vector<std::string> configs;  // only these; empty: all
  // Only these.
  std::vector<BenchmarkPass> passes = {BenchmarkPass::fwd, BenchmarkPass::bwd, BenchmarkPass::bwd_first,
                                       BenchmarkPass::step};
  std::vector<BenchmarkQuantity> quantities = {BenchmarkQuantity::speed, BenchmarkQuantity::memory};
  double warmup_ms = 25.0;
  double repeat_ms = 100.0;
  // Asked before every row; when it says yes, no more are measured.
  std::function<bool()> stop_requested = [] { return false; };
};

// The sizes that `config` is measured at: none when the options leave it out.
std::vector<int64_t> chosen_sizes(const BenchmarkConfig& config, const BenchmarkOptions& options);

// Throws UsageError when a config or a size that the options name is in none of the suites, when a chosen size cannot
// be counted, when no chosen config has one of the passes, when a suite of training configs has none for `device`, and
// when `device` can measure nothing of what is asked for.
void check_choice(std::span<const BenchmarkSuite> suites, const BenchmarkOptions& options, Device device);

// Runs what the options choose for `device` once on meta, which takes little time and no memory of a device. Throws
// ConfigError at a config that does not fit its operator, and at a training config whose bytes cannot be counted.
void check_fit(std::span<const BenchmarkSuite> suites, const BenchmarkOptions& options, Device device,
               const Registry& registry = built_in_registry());

// Bytes a second of a device-to-device copy, read and write counted, on `bytes` bytes (4 GiB on a GPU).
double measure_copy_rate(Context& context, int64_t bytes);

// Operations a second of a matrix product of two (size, size) matrices, the second of which is transposed as the
// weights of a linear layer are: 2 size^3 operations.
double measure_gemm_rate(Context& context, DType dtype, int64_t size, const BenchmarkOptions& options);

// Calls `report` with each row as it is measured, and says whether all were. `copy_rate` in bytes a second; 0: not
// known. On meta only memory is measured. Throws Error when a config does not fit its operator.
bool run_benchmark(Context& context, const BenchmarkSuite& suite, const BenchmarkOptions& options, double copy_rate,
                   const std::function<void(const BenchmarkRow&)>& report,
                   const Registry& registry = built_in_registry());

}  // namespace heddle
