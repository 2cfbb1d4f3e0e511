#include "tools/benchmark.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string_view>

#include "core/autograd/tape.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/runtime/stream.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tools/median.h"

namespace heddle {
namespace {

constexpr int kMemoryRepeats = 20;

// Normal numbers. Large tensors repeat a block of 2^20: distinct enough for timing, and quickly made.
void fill(Context& context, const Tensor& tensor, Random& random) {
  if (context.is_meta() || tensor.numel() == 0) return;
  const Tensor flat = tensor.reshape({-1});
  int64_t done = std::min<int64_t>(flat.numel(), int64_t{1} << 20);
  fill_normal(context, flat.slice(0, 0, done), random, 0.0, 1.0);
  while (done < flat.numel()) {
    const int64_t more = std::min(done, flat.numel() - done);
    copy(context, flat.slice(0, done, done + more), flat.slice(0, 0, more));
    done += more;
  }
}

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

// The tensors of one config at one size, and its operator as a function of them.
class Subject {
 public:
  Subject(Context& context, const Registry& registry, const BenchmarkConfig& config, int64_t n)
      : context_(context),
        config_(config),
        op_(registry.find(config.operator_name)),
        function_(bind_operator(op_, config.options_at(n))) {
    Random random(1, RandomStream::test);
    const MemoryScope scope(context, MemoryCategory::data);
    for (const auto& [name, extents] : config.inputs) {
      const InputSpec* spec = op_.find_input(name);
      check(spec != nullptr, "[bench] {}: {} has no input '{}', expected one of {}", config.name, op_.name, name,
            join_names(op_.input_names()));
      DType dtype = spec->dtype(config.dtype);
      if (const auto given = config.input_dtypes.find(name); given != config.input_dtypes.end()) dtype = given->second;
      Tensor tensor = Tensor::empty(context, config.shape_of(extents, n), dtype);
      draw(*spec, tensor, random);
      inputs_[name] = tensor;
      if (spec->is_real() && spec->kind != InputKind::full_precision) gradients_[name];
    }
  }

  // Forward on a tape of its own, outputs kept. The upstream gradients are made at the first call.
  void forward() {
    backward_done();
    tape_ = std::make_unique<Tape>(context_);
    tape_->allow_unused_leaves();
    NamedVariables variables;
    for (const auto& [name, tensor] : inputs_) {
      const auto gradient = gradients_.find(name);
      variables[name] =
          gradient != gradients_.end() ? tape_->leaf(tensor, gradient->second, name) : tape_->constant(tensor);
    }
    const MemoryScope scope(context_, MemoryCategory::activation);
    outputs_ = function_(*tape_, variables);
  }

  void make_upstream() {
    Random random(2, RandomStream::test);
    const MemoryScope scope(context_, MemoryCategory::gradient);
    for (const auto& [name, output] : outputs_) {
      if (!output.requires_grad() || inputs_holds(output)) continue;
      upstream_[name] = Tensor::empty(context_, output.shape(), output.dtype());
      fill(context_, upstream_[name], random);
    }
  }

  void backward() {
    std::vector<Tape::Root> roots;
    for (const auto& [name, upstream] : upstream_) roots.push_back({outputs_.at(name), upstream});
    tape_->backward(roots);
  }

  // Frees what the pass made: the tape and the outputs.
  void backward_done() {
    outputs_.clear();
    tape_.reset();
  }

  void drop_gradients() {
    for (auto& [name, gradient] : gradients_) gradient = Gradient{};
  }

  // Bytes that the pass must move: gradients that are added to are read as well as written.
  int64_t bytes(const std::string& pass, bool accumulate) const {
    int64_t total = 0;
    for (const std::string& name : moved(pass)) {
      const bool is_gradient = name.starts_with("d_");
      const std::string of = is_gradient ? name.substr(2) : name;
      const bool is_input = inputs_.contains(of);
      const Tensor* tensor = is_input ? &inputs_.at(of) : outputs_.contains(of) ? &outputs_.at(of).value : nullptr;
      check(tensor != nullptr, "[bench] {}: '{}' in moved is neither an input nor an output", config_.name, name);
      const int64_t times = is_gradient && is_input && accumulate ? 2 : 1;
      total += times * tensor->numel() * static_cast<int64_t>(size_of(tensor->dtype()));
    }
    return total;
  }

 private:
  bool inputs_holds(const Variable& output) const {
    return std::any_of(inputs_.begin(), inputs_.end(),
                       [&](const auto& input) { return input.second.shares_storage_with(output.value); });
  }

  // What the suite says, or else everything: inputs and outputs; in backward inputs, upstream gradients and gradients.
  std::vector<std::string> moved(const std::string& pass) const {
    if (const auto said = config_.moved.find(pass); said != config_.moved.end()) return said->second;
    std::vector<std::string> names;
    for (const auto& [name, tensor] : inputs_) {
      names.push_back(name);
      if (pass == "bwd" && gradients_.contains(name)) names.push_back("d_" + name);
    }
    for (const auto& [name, output] : outputs_) names.push_back(pass == "bwd" ? "d_" + name : name);
    return names;
  }

  void draw(const InputSpec& spec, const Tensor& tensor, Random& random) {
    if (context_.is_meta()) return;
    if (!spec.is_real()) {
      const uint64_t bound = index_bound(spec.name);
      std::vector<double> values(static_cast<size_t>(tensor.numel()));
      for (double& value : values) value = static_cast<double>(random.next_below(bound));
      if (spec.kind == InputKind::segment) sort_rows(values, tensor.size(-1));
      write_values(context_, tensor, values);
      return;
    }
    fill(context_, tensor, random);
    if (spec.kind != InputKind::full_precision || !is_decay(spec.name)) return;
    std::vector<double> values = read_values(context_, tensor);
    for (double& value : values) value = -0.1 * std::abs(value);
    write_values(context_, tensor, values);
  }

  // Whether the operator's own cases draw this input as a decay, a number below 0.
  bool is_decay(const std::string& name) const {
    const std::vector<OperatorCase> cases = op_.cases();
    return std::any_of(cases.begin(), cases.end(), [&](const OperatorCase& operator_case) {
      return std::any_of(operator_case.inputs.begin(), operator_case.inputs.end(), [&](const CaseInput& input) {
        return input.name == name && input.kind == CaseInputKind::decay;
      });
    });
  }

  uint64_t index_bound(const std::string& input) const {
    const auto said = config_.index_bounds.find(input);
    check(said != config_.index_bounds.end(), "[bench] {}: index_bounds does not say how many values {} may have",
          config_.name, input);
    return static_cast<uint64_t>(said->second);
  }

  Context& context_;
  const BenchmarkConfig& config_;
  const Operator& op_;
  const OperatorFunction function_;
  std::map<std::string, Tensor> inputs_;
  std::map<std::string, Gradient> gradients_;
  std::map<std::string, Tensor> upstream_;
  NamedVariables outputs_;
  std::unique_ptr<Tape> tape_;
};

double measure_speed(Subject& subject, Stopwatch& stopwatch, BenchmarkPass pass, const BenchmarkOptions& options) {
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

double measure_memory(Context& context, Subject& subject, BenchmarkPass pass) {
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

BenchmarkRow measure(Context& context, Subject& subject, BenchmarkPass pass, BenchmarkQuantity quantity,
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

template <class T>
bool contains(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
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
  fill(context, from, random);
  const Tensor to = Tensor::empty(context, from.shape(), DType::float32);
  Stopwatch stopwatch(context);
  const double milliseconds = stopwatch.measure(
      {}, [] {}, [&] { copy(context, to, from); });
  return 2.0 * static_cast<double>(bytes) / (milliseconds * 1e-3);
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
  bool has_pass = options.passes.empty();
  for (const BenchmarkSuite& suite : suites) {
    suite_names.push_back(suite.name);
    for (const BenchmarkConfig& config : suite.configs) {
      names.push_back(config.name);
      const std::vector<int64_t> here = chosen_sizes(config, options);
      chosen.insert(here.begin(), here.end());
      has_pass = has_pass || here.empty() ||
                 std::any_of(options.passes.begin(), options.passes.end(),
                             [&](BenchmarkPass pass) { return contains(config.passes, pass); });
      sizes.insert(config.sizes.begin(), config.sizes.end());
      check_sizes(config, here);
    }
  }
  for (const std::string& name : options.configs) {
    if (contains(names, name)) continue;
    throw UsageError(fmt::format("found no config '{}' in {}, expected one of {}{}", name, join_names(suite_names),
                                 join_names(names), did_you_mean(name, names)));
  }
  if (!has_pass) throw UsageError(fmt::format("{} has no such pass", join_names(suite_names)));
  for (const int64_t n : options.sizes) {
    if (chosen.contains(n)) continue;
    throw UsageError(fmt::format("found no case of size n = {} in {}, whose shapes are fixed, expected one of {}", n,
                                 join_names(suite_names), fmt::join(sizes, ", ")));
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
          Subject subject(context, registry, config, n);
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
  return true;
}

}  // namespace heddle
