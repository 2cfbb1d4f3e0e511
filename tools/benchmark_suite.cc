#include "tools/benchmark_suite.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <system_error>

#include "core/config/config_load.h"
#include "core/config/nearest_name.h"
#include "core/io/file_identity.h"
#include "core/runtime/checked.h"
#include "core/runtime/error.h"
#include "layers/modules/choices.h"
#include "tools/share_folders.h"
#include "tools/token_range.h"

namespace heddle {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1) {
    parts.push_back(text.substr(begin, end - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

int64_t evaluate_number(const std::string& text, int64_t n) {
  if (text == "n") return n;
  const std::optional<int64_t> value = number_of<int64_t>(text);
  check(value && *value >= 0, "found extent '{}', expected a number >= 0 or n", text);
  return *value;
}

// A number, or a quotient of two without a rest.
int64_t evaluate_factor(const std::string& text, int64_t n) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return evaluate_number(text, n);
  const int64_t dividend = evaluate_number(text.substr(0, slash), n);
  const int64_t divisor = evaluate_number(text.substr(slash + 1), n);
  check(divisor > 0 && dividend % divisor == 0, "extent '{}' with n = {} is no whole number", text, n);
  return dividend / divisor;
}

// Those of an operator.
constexpr BenchmarkPass kPasses[] = {BenchmarkPass::fwd, BenchmarkPass::bwd, BenchmarkPass::bwd_first};

std::vector<BenchmarkPass> read_passes(const ConfigNode& node) {
  std::vector<std::string> names;
  for (const BenchmarkPass pass : kPasses) names.emplace_back(name(pass));
  std::vector<BenchmarkPass> passes;
  for (const std::string& text : node.get<std::vector<std::string>>("passes", names)) {
    const auto found = std::find(names.begin(), names.end(), text);
    if (found == names.end()) {
      node.fail("passes", fmt::format("found '{}', expected one of {}", text, join_names(names)));
    }
    passes.push_back(kPasses[found - names.begin()]);
  }
  return passes;
}

// The operator of a config, which it names itself or its suite for all.
const Operator& read_operator(const ConfigNode& node, const ConfigNode& suite, const Registry& registry) {
  const bool is_own = node.has("operator"), is_of_all = suite.has("operator");
  if (!is_own && !is_of_all) node.fail("missing key 'operator', here or at the top of the suite");
  return registry.find((is_own ? node : suite).require_name("operator", registry.operator_names()));
}

// What a pass moves: inputs, outputs, and gradients of either.
std::vector<std::string> read_moved(const ConfigNode& moved, const std::string& pass, const ConfigNode& inputs,
                                    const Operator& op) {
  std::vector<std::string> known = inputs.keys();
  known.insert(known.end(), op.outputs.begin(), op.outputs.end());
  const auto names = moved.require<std::vector<std::string>>(pass);
  for (const std::string& name : names) {
    const std::string of = name.starts_with("d_") ? name.substr(2) : name;
    if (std::find(known.begin(), known.end(), of) != known.end()) continue;
    moved.fail(pass, fmt::format("found '{}', expected one of {}, or d_ and one of them{}", name, join_names(known),
                                 did_you_mean(of, known)));
  }
  return names;
}

BenchmarkConfig read_benchmark_config(const std::string& name, const ConfigNode& node, const ConfigNode& suite,
                                      const Registry& registry) {
  const Operator& op = read_operator(node, suite, registry);
  BenchmarkConfig config;
  config.name = name;
  config.operator_name = op.name;
  config.node = node;
  const DType dtype = suite.get_choice<DType>("dtype", DType::bfloat16, dtype_choices());
  config.dtype = node.get_choice<DType>("dtype", dtype, dtype_choices());
  const auto sizes = suite.get<std::vector<int64_t>>("n", {}, Range::at_least(1));
  config.sizes = node.get<std::vector<int64_t>>("n", sizes, Range::at_least(1));
  if (config.sizes.empty()) node.fail("missing key 'n', here or at the top of the suite");
  config.options = node.section("options");
  try {
    config.options_at(config.sizes.front());
  } catch (const Error& error) {
    node.fail("options", error.what());
  }
  const ConfigNode inputs = node.require_section("inputs");
  for (const std::string& input : inputs.keys()) {
    if (!op.find_input(input)) {
      inputs.fail(input, fmt::format("{} has no such input, expected one of {}{}", op.name,
                                     join_names(op.input_names()), did_you_mean(input, op.input_names())));
    }
    config.inputs.emplace_back(input, inputs.require<std::vector<std::string>>(input));
    try {
      config.shape_of(config.inputs.back().second, config.sizes.front());
    } catch (const Error& error) {
      inputs.fail(input, error.what());
    }
  }
  const auto check_is_input = [&](const ConfigNode& section, const std::string& input) {
    if (inputs.has(input)) return;
    const std::vector<std::string> names = inputs.keys();
    section.fail(
        input, fmt::format("found no such input, expected one of {}{}", join_names(names), did_you_mean(input, names)));
  };
  const ConfigNode dtypes = node.section("input_dtypes");
  for (const std::string& input : dtypes.keys()) {
    check_is_input(dtypes, input);
    config.input_dtypes[input] = dtypes.get_choice<DType>(input, DType::float32, dtype_choices());
  }
  const ConfigNode bounds = node.section("index_bounds");
  for (const std::string& input : bounds.keys()) {
    check_is_input(bounds, input);
    config.index_bounds[input] = bounds.require<int64_t>(input, Range::count());
  }
  for (const std::string& input : inputs.keys()) {
    if (op.find_input(input)->is_real() || config.index_bounds.contains(input)) continue;
    node.fail("index_bounds", fmt::format("found no bound of {}, expected how many values it may have", input));
  }
  check_index_bounds(config, op, config.sizes.front());
  config.passes = read_passes(node);
  const ConfigNode moved = node.require_section("moved"), flops = node.section("flops");
  for (const char* pass : {"fwd", "bwd"}) {
    const auto belongs = [pass](BenchmarkPass wanted) { return direction_of(wanted) == pass; };
    if (std::none_of(config.passes.begin(), config.passes.end(), belongs)) continue;
    config.moved[pass] = read_moved(moved, pass, inputs, op);
    if (!flops.has(pass)) continue;
    config.flops[pass] = flops.require<std::string>(pass);
    try {
      evaluate_extent(config.flops[pass], config.sizes.front());
    } catch (const Error& error) {
      flops.fail(pass, error.what());
    }
  }
  return config;
}

namespace fs = std::filesystem;

// Adds the training configs that the suite lists for devices of this type, which the key names.
void read_training(const ConfigNode& training, const std::string& key, DeviceType device, const fs::path& folder,
                   BenchmarkSuite& suite, const Registry& registry) {
  for (const std::string& file : training.get<std::vector<std::string>>(key, {})) {
    const fs::path path = folder / file;
    if (!fs::is_regular_file(path)) training.fail(key, fmt::format("found no file {}", path.string()));
    const std::string name = path.stem().string();
    const auto same_name = [&](const BenchmarkTraining& other) { return other.name == name; };
    const auto other = std::find_if(suite.training.begin(), suite.training.end(), same_name);
    if (other == suite.training.end()) {
      suite.training.push_back({name, path.string(), {device}, load_train_config(path.string(), {}, registry)});
      const std::vector<fs::path> read = config_files(path.string());
      suite.files.insert(suite.files.end(), read.begin(), read.end());
    } else if (file_identity(other->file) != file_identity(path)) {
      training.fail(key, fmt::format("found {} and {}, expected files of different names", other->file, path.string()));
    } else if (!other->devices.insert(device).second) {
      training.fail(key, fmt::format("{} is given twice", file));
    }
  }
}

BenchmarkSuite read_suite(const fs::path& path, const Registry& registry) {
  const ConfigNode root = load_config(path.string());
  BenchmarkSuite suite;
  suite.name = root.get<std::string>("suite", path.stem().string());
  const auto published = root.find<std::string>("published");
  if (published) {
    root.check_path("published", *published, "a file");
    suite.published = fs::weakly_canonical(path.parent_path() / *published).string();  // `..` of a link leads elsewhere
    if (!fs::is_regular_file(suite.published)) root.fail("published", fmt::format("found no file {}", suite.published));
  }
  suite.files = config_files(path.string());
  if (published) suite.files.emplace_back(suite.published);
  if (const auto training = root.find_section("training")) {
    root.refuse("configs", "the rows of a suite are those of operators or of training steps");
    read_training(*training, "cpu", DeviceType::cpu, path.parent_path(), suite, registry);
    read_training(*training, "cuda", DeviceType::cuda, path.parent_path(), suite, registry);
  } else {
    const ConfigNode configs = root.require_section("configs");
    for (const std::string& name : configs.keys()) {
      suite.configs.push_back(read_benchmark_config(name, configs.require_section(name), root, registry));
    }
  }
  root.finish();
  return suite;
}

std::optional<fs::path> find_suite(const std::string& name) {
  for (const fs::path& folder : share_folders()) {
    const fs::path path = folder / "configs/bench" / (name + ".yaml");
    if (fs::is_regular_file(path)) return path;
  }
  return std::nullopt;
}

// The suites of all folders. Training configs lie beside them.
std::vector<std::string> suite_names() {
  std::set<std::string> names;
  for (const fs::path& folder : share_folders()) {
    std::error_code missing;
    for (const auto& entry : fs::directory_iterator(folder / "configs/bench", missing)) {
      const fs::path& path = entry.path();
      if (path.extension() != ".yaml") continue;
      const ConfigNode root = load_config(path.string());
      if (root.has("configs") || root.has("training")) names.insert(path.stem().string());
    }
  }
  return {names.begin(), names.end()};
}

}  // namespace

void check_index_bounds(const BenchmarkConfig& config, const Operator& op, int64_t n) {
  for (const auto& [input, bound] : config.index_bounds) {
    const auto place = range_place(op.cases(), input);
    if (!place) continue;
    const auto of = std::find_if(config.inputs.begin(), config.inputs.end(),
                                 [&](const auto& other) { return other.first == place->input; });
    if (of == config.inputs.end()) continue;
    const Shape shape = config.shape_of(of->second, n);
    if (shape.rank() < -place->dim || bound <= shape[place->dim]) continue;
    config.node.section("index_bounds")
        .fail(input, fmt::format("found '{}', expected at most {}: {} has shape {} at n = {}", bound, shape[place->dim],
                                 place->input, to_string(shape), n));
  }
}

std::string_view name(BenchmarkPass pass) {
  constexpr std::string_view names[] = {"fwd", "bwd", "bwd_first", "step"};
  return names[static_cast<int>(pass)];
}

std::string direction_of(BenchmarkPass pass) { return pass == BenchmarkPass::fwd ? "fwd" : "bwd"; }

int64_t evaluate_extent(const std::string& text, int64_t n) {
  int64_t sum = 0;
  for (const std::string& term : split(text, '+')) {
    std::vector<int64_t> factors;
    for (const std::string& factor : split(term, '*')) factors.push_back(evaluate_factor(factor, n));
    const std::optional<int64_t> product = checked_product(factors);
    check(product && *product <= std::numeric_limits<int64_t>::max() - sum,
          "extent '{}' with n = {} is more than an int64 holds", text, n);
    sum += *product;
  }
  return sum;
}

ConfigNode BenchmarkConfig::options_at(int64_t n) const {
  return options.with_scalars([n](const std::string& text) {
    const bool is_extent =
        text.find('n') != std::string::npos && text.find_first_not_of("n0123456789*/+") == std::string::npos;
    return is_extent ? std::to_string(evaluate_extent(text, n)) : text;
  });
}

Shape BenchmarkConfig::shape_of(const std::vector<std::string>& extents, int64_t n) const {
  Shape shape;
  for (const std::string& extent : extents) shape.append(evaluate_extent(extent, n));
  return shape;
}

bool BenchmarkConfig::depends_on_n() const {
  const auto holds_n = [](const std::string& extent) { return extent.find('n') != std::string::npos; };
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](const auto& input) { return std::any_of(input.second.begin(), input.second.end(), holds_n); });
}

std::vector<std::string> BenchmarkSuite::config_names() const {
  std::vector<std::string> names;
  for (const BenchmarkConfig& config : configs) names.push_back(config.name);
  for (const BenchmarkTraining& config : training) names.push_back(config.name);
  return names;
}

BenchmarkSuite suite_of_cases(const Operator& op) {
  std::vector<OperatorCase> cases = op.cases();
  check(!cases.empty(), "operator {} has no case to be measured on: see Operator::cases", op.name);
  const auto is_large = [](const OperatorCase& operator_case) { return operator_case.large; };
  if (std::any_of(cases.begin(), cases.end(), is_large)) std::erase_if(cases, std::not_fn(is_large));
  BenchmarkSuite suite;
  suite.name = op.name;
  for (const OperatorCase& operator_case : cases) {
    BenchmarkConfig& config = suite.configs.emplace_back();
    config.name = operator_case.name;
    config.operator_name = op.name;
    config.options = config.node = parse_config(operator_case.options, operator_case.name);
    config.sizes = {numel(operator_case.inputs.at(0).shape)};
    for (const CaseInput& input : operator_case.inputs) {
      std::vector<std::string> extents;
      for (const int64_t extent : input.shape) extents.push_back(std::to_string(extent));
      config.inputs.emplace_back(input.name, extents);
      if (!is_real(input.kind)) config.index_bounds[input.name] = input.range;
      if (input.kind == CaseInputKind::matrix || input.kind == CaseInputKind::full_precision_parameter) {
        config.input_dtypes[input.name] = case_dtype(input, config.dtype);
      }
    }
  }
  return suite;
}

BenchmarkSuite load_benchmark_suite(const std::string& name_or_path, const Registry& registry) {
  if (name_or_path.ends_with(".yaml") || name_or_path.ends_with(".yml")) return read_suite(name_or_path, registry);
  if (const auto path = find_suite(name_or_path)) return read_suite(*path, registry);
  const std::vector<std::string> operators = registry.operator_names();
  if (std::find(operators.begin(), operators.end(), name_or_path) != operators.end()) {
    return suite_of_cases(registry.find(name_or_path));
  }
  const std::vector<std::string> suites = suite_names();
  std::vector<std::string> names = suites;
  names.insert(names.end(), operators.begin(), operators.end());
  std::string hint = did_you_mean(name_or_path, names);
  if (hint.empty()) {
    hint = fmt::format("; suites: {}; operators: {}", suites.empty() ? "none found" : join_names(suites),
                       join_names(operators));
  }
  throw UsageError(fmt::format("'{}' is neither a suite nor an operator{}", name_or_path, hint));
}

}  // namespace heddle
