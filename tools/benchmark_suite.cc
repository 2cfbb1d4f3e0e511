#include "tools/benchmark_suite.h"

#include <charconv>
#include <filesystem>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "layers/dtype_choices.h"

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

int64_t evaluate_factor(const std::string& text, int64_t n) {
  if (text == "n") return n;
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  check(code == std::errc() && end == text.data() + text.size(), "found extent '{}', expected a number or n", text);
  return value;
}

BenchmarkConfig read_benchmark_config(const std::string& name, const ConfigNode& node, const ConfigNode& suite) {
  BenchmarkConfig config;
  config.name = name;
  config.operator_name = node.get<std::string>("operator", suite.get<std::string>("operator", ""));
  if (config.operator_name.empty()) node.fail("missing key 'operator', here or at the top of the suite");
  const DType dtype = suite.get_choice<DType>("dtype", DType::bfloat16, dtype_choices());
  config.dtype = node.get_choice<DType>("dtype", dtype, dtype_choices());
  const auto sizes = suite.get<std::vector<int64_t>>("n", {});
  config.sizes = node.get<std::vector<int64_t>>("n", sizes, Range::at_least(0));
  if (config.sizes.empty()) node.fail("missing key 'n', here or at the top of the suite");
  config.options = node.section("options");
  try {
    config.options_at(config.sizes.front());
  } catch (const Error& error) {
    node.fail("options", error.what());
  }
  const ConfigNode inputs = node.require_section("inputs");
  for (const std::string& input : inputs.keys()) {
    config.inputs.emplace_back(input, inputs.require<std::vector<std::string>>(input));
    try {
      config.shape_of(config.inputs.back().second, config.sizes.front());
    } catch (const Error& error) {
      inputs.fail(input, error.what());
    }
  }
  inputs.finish();
  const ConfigNode dtypes = node.section("input_dtypes");
  for (const std::string& input : dtypes.keys()) {
    config.input_dtypes[input] = dtypes.get_choice<DType>(input, DType::float32, dtype_choices());
  }
  dtypes.finish();
  const ConfigNode moved = node.require_section("moved");
  for (const char* pass : {"fwd", "bwd"}) config.moved[pass] = moved.require<std::vector<std::string>>(pass);
  moved.finish();
  node.finish();
  return config;
}

}  // namespace

int64_t evaluate_extent(const std::string& text, int64_t n) {
  int64_t sum = 0;
  for (const std::string& term : split(text, '+')) {
    int64_t product = 1;
    for (const std::string& factor : split(term, '*')) product *= evaluate_factor(factor, n);
    sum += product;
  }
  return sum;
}

ConfigNode BenchmarkConfig::options_at(int64_t n) const {
  return options.with_scalars([n](const std::string& text) {
    const bool is_extent =
        text.find('n') != std::string::npos && text.find_first_not_of("n0123456789*+") == std::string::npos;
    return is_extent ? std::to_string(evaluate_extent(text, n)) : text;
  });
}

Shape BenchmarkConfig::shape_of(const std::vector<std::string>& extents, int64_t n) const {
  Shape shape;
  for (const std::string& extent : extents) shape.append(evaluate_extent(extent, n));
  return shape;
}

BenchmarkSuite load_benchmark_suite(const std::string& name_or_path) {
  const bool is_path = name_or_path.ends_with(".yaml");
  const std::filesystem::path path = is_path ? name_or_path : "configs/bench/" + name_or_path + ".yaml";
  const ConfigNode root = load_config(path.string());
  BenchmarkSuite suite;
  suite.name = root.get<std::string>("suite", path.stem().string());
  const auto published = root.find<std::string>("published");
  if (published) suite.published = (path.parent_path() / *published).lexically_normal().string();
  const ConfigNode configs = root.require_section("configs");
  for (const std::string& name : configs.keys()) {
    suite.configs.push_back(read_benchmark_config(name, configs.require_section(name), root));
  }
  configs.finish();
  root.finish();
  return suite;
}

}  // namespace heddle
