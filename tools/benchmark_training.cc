#include "tools/benchmark_training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "kernels/dense/gemm_algorithms.h"
#include "tools/benchmark_step.h"
#include "trainers/dry_run.h"
#include "trainers/step_memory.h"
#include "trainers/train_step.h"

namespace heddle {
namespace {

constexpr int kLeastTimedSteps = 5;

size_t peak_bytes(const TrainConfig& config) {
  const std::optional<StepPeak> peak = step_peak(config);
  check(peak.has_value(), "a step takes more bytes than can be counted");
  return peak->allocated;
}

// Measures training configs one after the other.
class TrainingBenchmark {
 public:
  TrainingBenchmark(Context& context, const BenchmarkOptions& options) : context_(context), options_(options) {}

  BenchmarkRow measure(const TrainConfig& config, BenchmarkQuantity quantity) {
    BenchmarkRow row;
    row.pass = BenchmarkPass::step;
    row.quantity = quantity;
    row.n = tokens_per_step(config.trainer);
    row.dtype = config.trainer.dtype;
    row.device = to_string(context_.device());
    if (quantity == BenchmarkQuantity::memory) {
      row.value = static_cast<double>(peak_bytes(config)) / (1 << 20);
    } else {
      measure_speed(config, row);
    }
    return row;
  }

 private:
  void measure_speed(const TrainConfig& config, BenchmarkRow& row) {
    const double rate = gemm_rate(config.trainer.dtype);
    bool& search_gemm = context_.resource<kernels::GemmAlgorithms>().search;
    search_gemm = config.trainer.search_gemm;  // as training does
    {
      TrainStep train_step(context_, config);
      const double seconds = seconds_per_step(train_step, config, kLeastTimedSteps, options_.repeat_ms * 1e-3);
      const double operations = operations_per_step(config, train_step.model().parameters());
      row.value = seconds * 1e3;
      row.tflops = operations / seconds * 1e-12;
      row.tokens_per_second = static_cast<double>(row.n) / seconds;
      row.gemm_fraction = operations / seconds / rate;
    }
    search_gemm = false;
    context_.allocator().release_cached();
  }

  // Operations a second of a large product, which is measured once for each dtype.
  double gemm_rate(DType dtype) {
    const auto [entry, is_new] = gemm_rates_.emplace(dtype, 0.0);
    if (is_new) {
      const int64_t size = context_.device().type == DeviceType::cuda ? 8192 : 1024;
      entry->second = measure_gemm_rate(context_, dtype, size, options_);
      context_.allocator().release_cached();
    }
    return entry->second;
  }

  Context& context_;
  const BenchmarkOptions& options_;
  std::map<DType, double> gemm_rates_;
};

}  // namespace

std::vector<const BenchmarkTraining*> chosen_training(const BenchmarkSuite& suite, const BenchmarkOptions& options,
                                                      Device device) {
  std::vector<const BenchmarkTraining*> chosen;
  if (!options.sizes.empty()) return chosen;
  for (const BenchmarkTraining& training : suite.training) {
    const bool is_listed = device.type == DeviceType::meta || training.devices.contains(device.type);
    const bool is_named =
        std::find(options.configs.begin(), options.configs.end(), training.name) != options.configs.end();
    if (options.configs.empty() ? is_listed : is_named) chosen.push_back(&training);
  }
  return chosen;
}

void check_training_choice(const BenchmarkSuite& suite, const BenchmarkOptions& options, Device device) {
  const bool is_free = options.sizes.empty() && options.configs.empty();
  if (!is_free || suite.training.empty() || !chosen_training(suite, options, device).empty()) return;
  throw UsageError(fmt::format("{} lists no config for device {}, expected --config with one of {}", suite.name,
                               to_string(device), join_names(suite.config_names())));
}

void check_training_fit(const BenchmarkTraining& training) {
  try {
    peak_bytes(training.config);
  } catch (const ConfigError&) {
    throw;  // names the place
  } catch (const Error& error) {
    training.config.node.fail(error.what());
  }
}

bool run_training_benchmark(Context& context, const BenchmarkSuite& suite, const BenchmarkOptions& options,
                            const std::function<void(const BenchmarkRow&)>& report) {
  const std::vector<BenchmarkPass>& passes = options.passes;
  if (std::find(passes.begin(), passes.end(), BenchmarkPass::step) == passes.end()) return true;
  TrainingBenchmark benchmark(context, options);
  for (const BenchmarkTraining* training : chosen_training(suite, options, context.device())) {
    for (const BenchmarkQuantity quantity : options.quantities) {
      if (quantity == BenchmarkQuantity::speed && context.is_meta()) continue;
      if (options.stop_requested()) return false;
      BenchmarkRow row;
      try {
        row = benchmark.measure(training->config, quantity);
      } catch (const Error& error) {
        fail("{} ({}): {}", training->name, training->file, error.what());
      }
      row.suite = suite.name;
      row.config = training->name;
      report(row);
    }
  }
  return true;
}

}  // namespace heddle
