// Measures the training steps of configs.                                                        docs/performance.md
//
// Speed: the median time of at least five optimizer steps, and of as many as 100 ms hold, after two that are not timed;
// its batches hold all ids of the vocabulary in turn. Beside it stand the operations of the model's matrix products, as
// `train --dry-run` counts them, and their rate as a fraction of the rate of one large square matrix product in the
// config's dtype, measured in the same run. Memory: the peak of allocated bytes of a step, counted on device meta.
#pragma once

#include <functional>
#include <vector>

#include "tools/benchmark.h"
#include "tools/benchmark_suite.h"

namespace heddle {

// The training configs of a suite whose steps are measured on `device`: those that the options name, else those that
// the suite lists for the type of the device, on meta all. None where the options give sizes: a step has that of its
// config.
std::vector<const BenchmarkTraining*> chosen_training(const BenchmarkSuite& suite, const BenchmarkOptions& options,
                                                      Device device);

// Throws UsageError when the suite lists training configs, but none for `device`, and the options name none.
void check_training_choice(const BenchmarkSuite& suite, const BenchmarkOptions& options, Device device);

// Takes two steps on device meta. Throws ConfigError when the model cannot be built or its bytes cannot be counted.
void check_training_fit(const BenchmarkTraining& training);

// What run_benchmark() does with the training configs of a suite. Errors name the config and its file.
bool run_training_benchmark(Context& context, const BenchmarkSuite& suite, const BenchmarkOptions& options,
                            const std::function<void(const BenchmarkRow&)>& report);

}  // namespace heddle
