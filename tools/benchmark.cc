#include "tools/benchmark.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string_view>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/runtime/stream.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "kernels/dense/gemm.h"
#include "tools/benchmark_subject.h"
#include "tools/benchmark_training.h"
#include "tools/median.h"

namespace heddle {
namespace {

constexpr int kMemoryRepeats = 20;

// Times calls after overwriting the cache. The buffer is eight times the L2: at least the two that the protocol wants,
// and long enough to overwrite that the host has given the call to the device before the device gets to it.
class Stopwatch {
 public:
  explicit Stopwatch(Context& context) : context_(context) {
    const auto bytes = static_cast<int64_t>(std::max<size_t>(8 * context.properties().l2_bytes, size_t{64} << 20));
    cache_ = Tensor::empty(context, {bytes / 4}, DType::float32);
  }

  // `prepare` is not timed.
  double measure(const BenchmarkOptions& options, const std::function<void()>& prepare,
                 const std::function<void()>& call) {
    run(1, prepare, call);  // opens what is opened once
    const double estimate = std::max(run(1, prepare, call).front(), 1e-3);
    run(count(options.warmup_ms, estimate), prepare, call);
    return median(run(count(options.repeat_ms, estimate), prepare, call));
  }

 private:
  static int count(double milliseconds, double each) {
    return std::clamp(static_cast<int>(milliseconds / each), 1, 1000);
  }

  std::vector<double> run(int repeats, const std::function<void()>& prepare, const std::function<void()>& call) {
    std::vector<Event> begins, ends;
    for (int i = 0; i < repeats; ++i) {
      begins.emplace_back(context_);
      ends.emplace_back(context_);
    }
    for (int i = 0; i < repeats; ++i) {
      prepare();
      fill_zero(context_, cache_);
      begins[static_cast<size_t>(i)].record(context_.stream());
      call();
      ends[static_cast<size_t>(i)].record(context_.stream());
    }
    context_.synchronize();
    std::vector<double> milliseconds;
    for (int i = 0; i < repeats; ++i) {
      milliseconds.push_back(begins[static_cast<size_t>(i)].milliseconds_to(ends[static_cast<size_t>(i)]));
    }
    return milliseconds;
  }

  Context& context_;
  Tensor cache_;
};

double measure_speed(BenchmarkSubject& subject, Stopwatch& stopwatch, BenchmarkPass pass,
                     const BenchmarkOptions& options) {
  if (pass == BenchmarkPass::fwd) {
    return stopwatch.measure(
        options, [&] { subject.backward_done(); }, [&] { subject.forward(); });
  }
  subject.drop_gradients();
  if (pass == BenchmarkPass::bwd) {  // gradients exist from here on
    subject.forward();
    subject.backward();
  }
  return stopwatch.measure(
      options,
      [&] {
        subject.forward();
        if (pass == BenchmarkPass::bwd_first) subject.drop_gradients();
      },
      [&] { subject.backward(); });
}

double measure_memory(Context& context, BenchmarkSubject& subject, BenchmarkPass pass) {
  subject.drop_gradients();
  double sum = 0.0;
  for (int repeat = 0; repeat < kMemoryRepeats; ++repeat) {
    subject.backward_done();
    if (pass != BenchmarkPass::fwd) subject.forward();
    if (pass == BenchmarkPass::bwd_first) subject.drop_gradients();
    context.allocator().reset_peaks();
    pass == BenchmarkPass::fwd ? subject.forward() : subject.backward();
    sum += static_cast<double>(context.allocator().stats().allocated.peak);
  }
  return sum / kMemoryRepeats / (1 << 20);
}

template <class T>
bool contains(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// Does what measure() does to one config, once and without data.
void try_on_meta(const Registry& registry, const BenchmarkConfig& config, int64_t n,
                 const std::vector<BenchmarkPass>& passes) {
  Context meta(Device{DeviceType::meta}, {.threads = 1});
  BenchmarkSubject subject(meta, registry, config, n);
  for (const BenchmarkPass pass : passes) {
    if (!contains(config.passes, pass)) continue;
    subject.forward();
    subject.bytes(direction_of(pass), pass == BenchmarkPass::bwd);
    if (pass == BenchmarkPass::fwd) continue;
    subject.make_upstream();
    subject.backward();
  }
}

BenchmarkRow measure(Context& context, BenchmarkSubject& subject, BenchmarkPass pass, BenchmarkQuantity quantity,
                     const BenchmarkOptions& options, double copy_rate, int64_t flops) {
  subject.forward();
  BenchmarkRow row;
  row.pass = pass;
  row.quantity = quantity;
  row.device = to_string(context.device());
  row.bytes = subject.bytes(direction_of(pass), pass == BenchmarkPass::bwd);
  if (pass != BenchmarkPass::fwd) subject.make_upstream();
  if (quantity == BenchmarkQuantity::memory) {
    row.value = measure_memory(context, subject, pass);
    return row;
  }
  Stopwatch stopwatch(context);
  row.value = measure_speed(subject, stopwatch, pass, options);
  row.gbps = static_cast<double>(row.bytes) / row.value * 1e-6;
  row.copy_fraction = copy_rate > 0.0 ? row.gbps * 1e9 / copy_rate : 0.0;
  row.tflops = static_cast<double>(flops) / row.value * 1e-9;
  return row;
}

// Throws UsageError when a shape or an option cannot be counted at one of the sizes.
void check_sizes(const BenchmarkConfig& config, const std::vector<int64_t>& sizes) {
  for (const int64_t n : sizes) {
    try {
      config.options_at(n);
      for (const auto& [name, extents] : config.inputs) numel(config.shape_of(extents, n));
      for (const auto& [pass, text] : config.flops) evaluate_extent(text, n);
    } catch (const Error& error) {
      throw UsageError(fmt::format("{} at n = {}: {}", config.name, n, error.what()));
    }
  }
}

}  // namespace

std::string_view name(BenchmarkQuantity quantity) { return quantity == BenchmarkQuantity::speed ? "speed" : "memory"; }

double measure_copy_rate(Context& context, int64_t bytes) {
  const Tensor from = Tensor::empty(context, {bytes / 4}, DType::float32);
  Random random(3, RandomStream::test);
  fill_quickly(context, from, random);
  const Tensor to = Tensor::empty(context, from.shape(), DType::float32);
  Stopwatch stopwatch(context);
  const double milliseconds = stopwatch.measure(
      {}, [] {}, [&] { copy(context, to, from); });
  return 2.0 * static_cast<double>(bytes) / (milliseconds * 1e-3);
}

double measure_gemm_rate(Context& context, DType dtype, int64_t size, const BenchmarkOptions& options) {
  const Tensor a = Tensor::empty(context, {size, size}, dtype), b = Tensor::empty(context, {size, size}, dtype);
  const Tensor c = Tensor::empty(context, {size, size}, dtype);
  Random random(3, RandomStream::test);
  fill_quickly(context, a, random);
  fill_quickly(context, b, random);
  const kernels::GemmArgs args = {.a = kernels::rows_view(a),
                                  .b = kernels::rows_view(b),
                                  .transpose_b = kernels::Transpose::yes,
                                  .bias = {},
                                  .c = {kernels::rows_view(c)}};
  Stopwatch stopwatch(context);
  const double milliseconds = stopwatch.measure(
      options, [] {}, [&] { kernels::gemm(context, args); });
  return kernels::work_of(args).operations / (milliseconds * 1e-3);
}

std::vector<int64_t> chosen_sizes(const BenchmarkConfig& config, const BenchmarkOptions& options) {
  if (!options.configs.empty() && !contains(options.configs, config.name)) return {};
  if (options.sizes.empty()) return config.sizes;
  if (config.depends_on_n()) return options.sizes;
  std::vector<int64_t> sizes = config.sizes;
  std::erase_if(sizes, [&](int64_t n) { return !contains(options.sizes, n); });
  return sizes;
}

void check_choice(std::span<const BenchmarkSuite> suites, const BenchmarkOptions& options, Device device) {
  if (device.type == DeviceType::meta && !contains(options.quantities, BenchmarkQuantity::memory)) {
    throw UsageError("nothing can be timed on device meta, expected another device, or memory to be asked for");
  }
  std::vector<std::string> names, suite_names;
  std::set<int64_t> sizes, chosen;
  bool has_config = false, has_pass = options.passes.empty();
  for (const BenchmarkSuite& suite : suites) {
    suite_names.push_back(suite.name);
    const std::vector<std::string> of_suite = suite.config_names();
    names.insert(names.end(), of_suite.begin(), of_suite.end());
    check_training_choice(suite, options, device);
    if (!chosen_training(suite, options, device).empty()) {
      has_config = true;
      has_pass = has_pass || contains(options.passes, BenchmarkPass::step);
    }
    for (const BenchmarkConfig& config : suite.configs) {
      const std::vector<int64_t> here = chosen_sizes(config, options);
      chosen.insert(here.begin(), here.end());
      has_config = has_config || !here.empty();
      has_pass =
          has_pass || (!here.empty() && std::any_of(options.passes.begin(), options.passes.end(),
                                                    [&](BenchmarkPass pass) { return contains(config.passes, pass); }));
      sizes.insert(config.sizes.begin(), config.sizes.end());
      check_sizes(config, here);
    }
  }
  for (const std::string& name : options.configs) {
    if (contains(names, name)) continue;
    throw UsageError(fmt::format("found no config '{}' in {}, expected one of {}{}", name, join_names(suite_names),
                                 join_names(names), did_you_mean(name, names)));
  }
  if (names.empty()) throw UsageError(fmt::format("{} has no config", join_names(suite_names)));
  if (has_config && !has_pass) throw UsageError(fmt::format("{} has no such pass", join_names(suite_names)));
  for (const int64_t n : options.sizes) {
    if (chosen.contains(n)) continue;
    if (sizes.empty()) {
      throw UsageError(fmt::format("found size n = {} for {}, expected none: steps have the tokens of their configs", n,
                                   join_names(suite_names)));
    }
    throw UsageError(fmt::format("found no case of size n = {} in {}, whose shapes are fixed, expected one of {}", n,
                                 join_names(suite_names), fmt::join(sizes, ", ")));
  }
}

void check_fit(std::span<const BenchmarkSuite> suites, const BenchmarkOptions& options, Device device,
               const Registry& registry) {
  for (const BenchmarkSuite& suite : suites) {
    for (const BenchmarkTraining* training : chosen_training(suite, options, device)) check_training_fit(*training);
    for (const BenchmarkConfig& config : suite.configs) {
      for (const int64_t n : chosen_sizes(config, options)) {
        try {
          check_index_bounds(config, registry.find(config.operator_name), n);
          try_on_meta(registry, config, n, options.passes);
        } catch (const ConfigError&) {
          throw;  // names the place
        } catch (const Error& error) {
          config.node.fail(fmt::format("at n = {}: {}", n, error.what()));
        }
      }
    }
  }
}

bool run_benchmark(Context& context, const BenchmarkSuite& suite, const BenchmarkOptions& options, double copy_rate,
                   const std::function<void(const BenchmarkRow&)>& report, const Registry& registry) {
  for (const BenchmarkConfig& config : suite.configs) {
    for (const int64_t n : chosen_sizes(config, options)) {
      for (const BenchmarkQuantity quantity : options.quantities) {
        if (quantity == BenchmarkQuantity::speed && context.is_meta()) continue;
        for (const BenchmarkPass pass : options.passes) {
          if (!contains(config.passes, pass)) continue;
          if (options.stop_requested()) return false;
          BenchmarkSubject subject(context, registry, config, n);
          const auto flops = config.flops.find(direction_of(pass));
          BenchmarkRow row = measure(context, subject, pass, quantity, options, copy_rate,
                                     flops != config.flops.end() ? evaluate_extent(flops->second, n) : 0);
          row.suite = suite.name;
          row.config = config.name;
          row.n = n;
          row.dtype = config.dtype;
          report(row);
        }
      }
    }
  }
  return run_training_benchmark(context, suite, options, report);
}

}  // namespace heddle
