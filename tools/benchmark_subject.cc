#include "tools/benchmark_subject.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

// Inputs of full precision, such as angles and decays, have a gradient only where the config says so.
bool names_gradient(const BenchmarkConfig& config, const std::string& input) {
  const auto moved = config.moved.find("bwd");
  return moved != config.moved.end() &&
         std::find(moved->second.begin(), moved->second.end(), "d_" + input) != moved->second.end();
}

}  // namespace

void fill_quickly(Context& context, const Tensor& tensor, Random& random) {
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

BenchmarkSubject::BenchmarkSubject(Context& context, const Registry& registry, const BenchmarkConfig& config, int64_t n)
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
    if (spec->is_real() && (spec->kind != InputKind::full_precision || names_gradient(config, name))) gradients_[name];
  }
}

void BenchmarkSubject::forward() {
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

void BenchmarkSubject::make_upstream() {
  Random random(2, RandomStream::test);
  const MemoryScope scope(context_, MemoryCategory::gradient);
  for (const auto& [name, output] : outputs_) {
    if (!output.requires_grad() || inputs_holds(output)) continue;
    upstream_[name] = Tensor::empty(context_, output.shape(), output.dtype());
    fill_quickly(context_, upstream_[name], random);
  }
}

void BenchmarkSubject::backward() {
  std::vector<Tape::Root> roots;
  for (const auto& [name, upstream] : upstream_) roots.push_back({outputs_.at(name), upstream});
  tape_->backward(roots);
}

void BenchmarkSubject::backward_done() {
  outputs_.clear();
  tape_.reset();
}

void BenchmarkSubject::drop_gradients() {
  for (auto& [name, gradient] : gradients_) gradient = Gradient{};
}

int64_t BenchmarkSubject::bytes(const std::string& pass, bool accumulate) const {
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

bool BenchmarkSubject::inputs_holds(const Variable& output) const {
  return std::any_of(inputs_.begin(), inputs_.end(),
                     [&](const auto& input) { return input.second.shares_storage_with(output.value); });
}

std::vector<std::string> BenchmarkSubject::moved(const std::string& pass) const {
  if (const auto said = config_.moved.find(pass); said != config_.moved.end()) return said->second;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : inputs_) {
    names.push_back(name);
    if (pass == "bwd" && gradients_.contains(name)) names.push_back("d_" + name);
  }
  for (const auto& [name, output] : outputs_) names.push_back(pass == "bwd" ? "d_" + name : name);
  return names;
}

void BenchmarkSubject::draw(const InputSpec& spec, const Tensor& tensor, Random& random) {
  if (context_.is_meta()) return;
  if (!spec.is_real()) {
    const uint64_t bound = index_bound(spec.name);
    std::vector<double> values(static_cast<size_t>(tensor.numel()));
    for (double& value : values) value = static_cast<double>(random.next_below(bound));
    if (spec.kind == InputKind::segment) sort_rows(values, tensor.size(-1));
    write_values(context_, tensor, values);
    return;
  }
  fill_quickly(context_, tensor, random);
  if (spec.kind != InputKind::full_precision || !is_decay(spec.name)) return;
  std::vector<double> values = read_values(context_, tensor);
  for (double& value : values) value = -0.1 * std::abs(value);
  write_values(context_, tensor, values);
}

bool BenchmarkSubject::is_decay(const std::string& name) const {
  const std::vector<OperatorCase> cases = op_.cases();
  return std::any_of(cases.begin(), cases.end(), [&](const OperatorCase& operator_case) {
    return std::any_of(operator_case.inputs.begin(), operator_case.inputs.end(), [&](const CaseInput& input) {
      return input.name == name && input.kind == CaseInputKind::decay;
    });
  });
}

uint64_t BenchmarkSubject::index_bound(const std::string& input) const {
  const auto said = config_.index_bounds.find(input);
  check(said != config_.index_bounds.end(), "[bench] {}: index_bounds does not say how many values {} may have",
        config_.name, input);
  return static_cast<uint64_t>(said->second);
}

}  // namespace heddle
