#include "tools/run_operator.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <utility>

#include "core/config/config_error.h"
#include "core/config/config_load.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string upstream_name(const std::string& output) { return "d_" + output; }

std::vector<std::string> upstream_names(const Operator& layer) {
  std::vector<std::string> names;
  for (const std::string& output : layer.outputs) names.push_back(upstream_name(output));
  return names;
}

// "rms_norm takes x; optional: residual, gate, weight, bias; upstream gradients: d_y, d_r"
std::string describe_inputs(const Operator& layer) {
  std::vector<std::string> required, optional;
  for (const InputSpec& input : layer.inputs) (input.optional ? optional : required).push_back(input.name);
  std::string text = layer.name + " takes " + join_names(required);
  if (!optional.empty()) text += "; optional: " + join_names(optional);
  return text + "; upstream gradients: " + join_names(upstream_names(layer));
}

// A run of one operator: the given tensors by name, in the dtypes it computes with.
class LayerRun {
 public:
  LayerRun(Context& context, const LayerSpec& spec, std::span<const NamedTensor> given, std::optional<DType> dtype)
      : context_(context), spec_(spec), layer_(*spec.layer), converts_(dtype.has_value()) {
    for (const auto& [name, tensor] : given) given_[name] = tensor;
    check_names();
    dtype_ = dtype.value_or(dtype_of_inputs());
  }

  std::vector<NamedTensor> run(Tape::Disturbance disturbance) {
    Tape tape(context_, wants_gradients() ? Tape::Mode::record : Tape::Mode::inference);
    tape.disturb_numbers(std::move(disturbance));
    std::map<std::string, Gradient> gradients;
    NamedVariables inputs;
    for (const InputSpec& input : layer_.inputs) {
      const std::string& name = input.name;
      if (!given_.contains(name)) continue;
      const Tensor value = convert(name, given_.at(name), stored_dtype(input));
      inputs[name] = is_floating(value.dtype()) ? tape.leaf(value, gradients[name], name) : tape.constant(value);
    }
    const NamedVariables outputs = spec_.function(tape, inputs);
    std::vector<NamedTensor> results;
    for (const std::string& name : layer_.outputs) {
      if (outputs.contains(name)) results.push_back({name, result(outputs.at(name).value)});
    }
    if (!wants_gradients()) return results;

    tape.allow_unused_leaves();
    tape.backward(roots(outputs));
    for (const std::string& name : layer_.input_names()) {
      if (!gradients.contains(name) || !gradients.at(name).written) continue;
      results.push_back({upstream_name(name), result(gradients.at(name).tensor)});
    }
    return results;
  }

 private:
  void check_names() const {
    std::vector<std::string> known = layer_.input_names();
    for (const std::string& name : upstream_names(layer_)) known.push_back(name);
    for (const auto& [name, tensor] : given_) {
      check(contains(known, name), "unknown tensor '{}'{}; {}", name, did_you_mean(name, known),
            describe_inputs(layer_));
    }
    for (const InputSpec& input : layer_.inputs) {
      check(input.optional || given_.contains(input.name), "missing tensor '{}'; {}", input.name,
            describe_inputs(layer_));
    }
  }

  bool wants_gradients() const {
    const std::vector<std::string> names = upstream_names(layer_);
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) { return given_.contains(name); });
  }

  // That of the first input that is stored in the compute dtype.
  DType dtype_of_inputs() const {
    for (const InputSpec& input : layer_.inputs) {
      if (!given_.contains(input.name) || input.kind != InputKind::value) continue;
      check_real(input.name, given_.at(input.name));
      return given_.at(input.name).dtype();
    }
    return DType::float32;
  }

  // What an input is stored in: without --dtype, full precision where it is given so and may be.
  DType stored_dtype(const InputSpec& input) const {
    const DType wide = accumulate_type(dtype_);
    const bool stays = !converts_ && input.may_be_full_precision() && given_.at(input.name).dtype() == wide;
    return stays ? wide : input.dtype(dtype_);
  }

  static void check_real(const std::string& name, const Tensor& tensor) {
    check(is_floating(tensor.dtype()), "tensor '{}' is {}, expected real numbers", name, heddle::name(tensor.dtype()));
  }

  // What backward starts from: the given gradients, zeros for outputs without one.
  std::vector<Tape::Root> roots(const NamedVariables& outputs) {
    std::vector<Tape::Root> roots;
    for (const std::string& name : layer_.outputs) {
      const std::string upstream = upstream_name(name);
      const auto found = outputs.find(name);
      if (found == outputs.end()) {
        check(!given_.contains(upstream), "tensor '{}' is given, but with these options and inputs {} has no output {}",
              upstream, layer_.name, name);
        continue;
      }
      const Variable& output = found->second;
      if (!output.requires_grad()) continue;
      if (!given_.contains(upstream)) {
        roots.push_back({output, Tensor::zeros(context_, output.shape(), output.dtype())});
        continue;
      }
      const Tensor& given = given_.at(upstream);
      check(given.shape() == output.shape(), "tensor '{}' has shape {}, expected {}: that of {}", upstream,
            given.shape(), output.shape(), name);
      roots.push_back({output, convert(upstream, given, output.dtype())});
    }
    return roots;
  }

  // Contiguous, of `to`. Rounds only when --dtype asks for it.
  Tensor convert(const std::string& name, const Tensor& tensor, DType to) {
    if (is_floating(to)) {
      check_real(name, tensor);
      check(converts_ || widens(tensor.dtype(), to),
            "tensor '{}' is {} and would be rounded to {}; save it so, or choose with --dtype", name,
            heddle::name(tensor.dtype()), heddle::name(to));
    } else {
      check_indices(name, tensor);
    }
    return cast(tensor, to);
  }

  void check_indices(const std::string& name, const Tensor& tensor) {
    check(!is_floating(tensor.dtype()), "tensor '{}' is {}, expected int32 or int64", name,
          heddle::name(tensor.dtype()));
    for (double value : read_values(context_, tensor)) {
      check(std::abs(value) <= std::numeric_limits<int32_t>::max(),
            "tensor '{}' holds {:.0f}, expected 32-bit integers", name, value);
    }
  }

  static bool widens(DType from, DType to) {
    return from == to || to == DType::float64 || (to == DType::float32 && from != DType::float64);
  }

  Tensor result(const Tensor& tensor) {
    return cast(tensor, converts_ && is_floating(tensor.dtype()) ? dtype_ : tensor.dtype());
  }

  Tensor cast(const Tensor& tensor, DType to) {
    if (tensor.dtype() == to && tensor.is_contiguous()) return tensor;
    const Tensor converted = Tensor::empty(context_, tensor.shape(), to);
    write_values(context_, converted, read_values(context_, tensor));
    return converted;
  }

  Context& context_;
  const LayerSpec& spec_;
  const Operator& layer_;
  std::map<std::string, Tensor> given_;
  bool converts_;
  DType dtype_ = DType::float32;
};

}  // namespace

LayerSpec read_layer_spec(const ConfigNode& node, const Registry& registry) {
  LayerSpec spec;
  spec.layer = &registry.find(node.require_name("layer", registry.operator_names()));
  spec.function = bind_operator(*spec.layer, node.section("options"));
  node.finish();
  return spec;
}

LayerSpec load_layer_spec(const std::string& path, const Registry& registry) {
  return read_layer_spec(load_config(path), registry);
}

std::vector<NamedTensor> run_layer(Context& context, const LayerSpec& spec, std::span<const NamedTensor> given,
                                   std::optional<DType> dtype, Tape::Disturbance disturbance) {
  check(!context.is_meta(), "run-layer needs a device with data, meta has none");
  return LayerRun(context, spec, given, dtype).run(std::move(disturbance));
}

void run_layer_files(Context& context, const LayerSpec& spec, const std::filesystem::path& inputs,
                     const std::filesystem::path& outputs, std::optional<DType> dtype) {
  SafetensorsReader reader(inputs);
  std::vector<NamedTensor> given;
  for (const SafetensorsEntry& entry : reader.entries()) given.push_back({entry.name, reader.read(context, entry)});
  std::vector<NamedTensor> results;
  try {
    results = run_layer(context, spec, given, dtype);
  } catch (const ConfigError&) {
    throw;  // names the place in the spec
  } catch (const Error& error) {
    fail("{}: {}", inputs.string(), error.what());
  }
  write_safetensors(context, outputs, results, {{"layer", spec.layer->name}});
}

}  // namespace heddle
