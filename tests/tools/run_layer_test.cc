#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/ops/norm.h"
#include "tests/temp_folder.h"
#include "tools/run_operator.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LayerSpec spec_of(const std::string& text) { return read_layer_spec(parse_config(text, "spec.yaml")); }

Tensor random_tensor(Context& context, const Shape& shape, uint32_t seed, DType dtype = DType::float32) {
  Random random(seed, RandomStream::test);
  const Tensor tensor = Tensor::empty(context, shape, dtype);
  fill_normal(context, tensor, random, 0.0, 1.0);
  return tensor;
}

Tensor cast(Context& context, const Tensor& tensor, DType dtype) {
  const Tensor result = Tensor::empty(context, tensor.shape(), dtype);
  write_values(context, result, read_values(context, tensor));
  return result;
}

std::vector<std::string> names_of(const std::vector<NamedTensor>& tensors) {
  std::vector<std::string> names;
  for (const NamedTensor& tensor : tensors) names.push_back(tensor.name);
  return names;
}

const Tensor& find(const std::vector<NamedTensor>& tensors, const std::string& name) {
  for (const NamedTensor& tensor : tensors) {
    if (tensor.name == name) return tensor.tensor;
  }
  throw Error("no tensor " + name);
}

class RunLayerTest : public ::testing::Test {
 protected:
  std::vector<NamedTensor> norm_inputs(DType dtype = DType::float32) {
    const Shape shape{2, 3, 8};
    return {{"x", random_tensor(context_, shape, 1, dtype)},
            {"residual", random_tensor(context_, shape, 2, dtype)},
            {"weight", random_tensor(context_, {8}, 3, dtype)}};
  }

  std::vector<double> values(const std::vector<NamedTensor>& tensors, const std::string& name) {
    return read_values(context_, find(tensors, name));
  }

  Context context_;
  LayerSpec rms_norm_ = spec_of("{layer: rms_norm, options: {eps: 1.0e-3}}");
};

TEST_F(RunLayerTest, GivesWhatTheOperatorGives) {
  const std::vector<NamedTensor> inputs = norm_inputs();
  Tape tape(context_);
  std::vector<Gradient> gradients(3);
  const Variable x = tape.leaf(find(inputs, "x"), gradients[0], "x");
  NormInputs others;
  others.residual = tape.leaf(find(inputs, "residual"), gradients[1], "residual");
  others.weight = tape.leaf(find(inputs, "weight"), gradients[2], "weight");
  NormOptions options;
  options.eps = 1e-3;
  const Normed expected = norm(tape, x, others, options);
  const Tensor d_y = random_tensor(context_, x.shape(), 4), d_r = random_tensor(context_, x.shape(), 5);
  tape.backward({{expected.y, d_y}, {expected.r, d_r}});

  std::vector<NamedTensor> given = inputs;
  EXPECT_THAT(names_of(run_layer(context_, rms_norm_, given)), ElementsAre("y", "r"));
  given.push_back({"d_y", d_y});
  given.push_back({"d_r", d_r});
  const std::vector<NamedTensor> results = run_layer(context_, rms_norm_, given);
  EXPECT_THAT(names_of(results), ElementsAre("y", "r", "d_x", "d_residual", "d_weight"));
  EXPECT_EQ(values(results, "y"), read_values(context_, expected.y.value));
  EXPECT_EQ(values(results, "r"), read_values(context_, expected.r.value));
  EXPECT_EQ(values(results, "d_x"), read_values(context_, gradients[0].tensor));
  EXPECT_EQ(values(results, "d_residual"), read_values(context_, gradients[1].tensor));
  EXPECT_EQ(values(results, "d_weight"), read_values(context_, gradients[2].tensor));
}

TEST_F(RunLayerTest, AnOutputWithoutUpstreamGradientCountsAsZero) {
  std::vector<NamedTensor> given = norm_inputs();
  given.push_back({"d_r", random_tensor(context_, {2, 3, 8}, 5)});
  const std::vector<NamedTensor> results = run_layer(context_, rms_norm_, given);
  EXPECT_EQ(values(results, "d_x"), values(given, "d_r"));
  EXPECT_EQ(values(results, "d_weight"), std::vector<double>(8, 0.0));
}

TEST_F(RunLayerTest, DtypeRoundsInputsAndResults) {
  std::vector<NamedTensor> given = norm_inputs();
  given.push_back({"d_y", random_tensor(context_, {2, 3, 8}, 4)});
  std::vector<NamedTensor> rounded;
  for (const auto& [name, tensor] : given) rounded.push_back({name, cast(context_, tensor, DType::bfloat16)});
  const std::vector<NamedTensor> converted = run_layer(context_, rms_norm_, given, DType::bfloat16);
  const std::vector<NamedTensor> direct = run_layer(context_, rms_norm_, rounded);
  ASSERT_EQ(names_of(converted), names_of(direct));
  for (const auto& [name, tensor] : converted) {
    EXPECT_EQ(tensor.dtype(), DType::bfloat16) << name;
    EXPECT_EQ(read_values(context_, tensor), values(direct, name)) << name;
  }
}

TEST_F(RunLayerTest, WithoutDtypeNothingIsRoundedSilently) {
  std::vector<NamedTensor> given = norm_inputs();
  given[2].tensor = cast(context_, given[2].tensor, DType::bfloat16);  // widening loses nothing
  EXPECT_EQ(find(run_layer(context_, rms_norm_, given), "y").dtype(), DType::float32);
  given[2].tensor = cast(context_, given[2].tensor, DType::float64);
  try {
    run_layer(context_, rms_norm_, given);
    FAIL() << "a float64 weight was rounded to float32";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("tensor 'weight' is float64 and would be rounded to float32"));
  }
}

// A float32 weight beside x of 16 bits stays what it is, and so does its gradient; --dtype rounds it.
TEST_F(RunLayerTest, AWeightInFullPrecisionStaysSo) {
  std::vector<NamedTensor> given = norm_inputs();
  given.erase(given.begin() + 1);  // the residual, whose sum with x is rounded
  given.push_back({"d_y", random_tensor(context_, {2, 3, 8}, 4)});
  for (NamedTensor& input : given) {
    if (input.name != "weight") input.tensor = cast(context_, input.tensor, DType::bfloat16);
  }
  ASSERT_EQ(find(given, "weight").dtype(), DType::float32);
  const std::vector<NamedTensor> kept = run_layer(context_, rms_norm_, given);
  const std::vector<NamedTensor> rounded = run_layer(context_, rms_norm_, given, DType::bfloat16);
  const std::vector<NamedTensor> exact = run_layer(context_, rms_norm_, given, DType::float64);
  for (const auto& [name, tensor] : kept) {
    EXPECT_EQ(tensor.dtype(), name == "d_weight" ? DType::float32 : DType::bfloat16) << name;
    EXPECT_EQ(find(rounded, name).dtype(), DType::bfloat16) << name;
  }
  EXPECT_NE(values(kept, "y"), values(rounded, "y"));
  const std::vector<double> found = values(kept, "y"), wanted = values(exact, "y");
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(found[i], wanted[i], 0x1.01p-8 * std::abs(wanted[i])) << i;
}

TEST_F(RunLayerTest, RefusesTensorsThatDoNotFit) {
  const auto message = [&](const std::vector<NamedTensor>& given) -> std::string {
    try {
      run_layer(context_, rms_norm_, given);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const NamedTensor x{"x", random_tensor(context_, {2, 8}, 1)};
  const std::string takes = "rms_norm takes x; optional: residual, gate, weight, bias; upstream gradients: d_y, d_r";
  EXPECT_EQ(message({}), "missing tensor 'x'; " + takes);
  EXPECT_EQ(message({x, {"wieght", x.tensor}}), "unknown tensor 'wieght'; did you mean 'weight'?; " + takes);
  EXPECT_EQ(message({x, {"theta", x.tensor}}), "unknown tensor 'theta'; " + takes);
  EXPECT_THAT(message({{"x", Tensor::zeros(context_, {2, 8}, DType::int32)}}), HasSubstr("tensor 'x' is int32"));
  EXPECT_THAT(message({x, {"weight", random_tensor(context_, {7}, 2)}}),
              HasSubstr("[rms_norm] weight has shape (7), expected (8)"));
  EXPECT_EQ(message({x, {"d_y", random_tensor(context_, {2, 7}, 2)}}),
            "tensor 'd_y' has shape (2, 7), expected (2, 8): that of y");
  EXPECT_EQ(message({x, {"d_r", x.tensor}}),
            "tensor 'd_r' is given, but with these options and inputs rms_norm has no output r");
}

TEST_F(RunLayerTest, FileToFile) {
  const testing::TempFolder folder;
  std::vector<NamedTensor> given = norm_inputs();
  given.push_back({"d_y", random_tensor(context_, {2, 3, 8}, 4)});
  write_safetensors(context_, folder / "in", given);
  run_layer_files(context_, rms_norm_, folder / "in", folder / "out");
  SafetensorsReader reader(folder / "out");
  const std::vector<NamedTensor> expected = run_layer(context_, rms_norm_, given);
  EXPECT_EQ(reader.entries().size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    EXPECT_EQ(read_values(context_, reader.read(context_, reader.at(name))), read_values(context_, tensor)) << name;
  }
  write_safetensors(context_, folder / "bad", std::vector<NamedTensor>{{"y", find(given, "x")}});
  EXPECT_THROW(run_layer_files(context_, rms_norm_, folder / "bad", folder / "none"), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / "none"));
}

TEST(LayerSpecTest, BadSpecsNameThePlace) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      spec_of(text);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message("options: {eps: 1.0}\n"), HasSubstr("spec.yaml"));
  EXPECT_THAT(message("layer: rms_nrom\n"), HasSubstr("spec.yaml:1:8: "));
  EXPECT_THAT(message("layer: rms_nrom\n"), HasSubstr("did you mean 'rms_norm'?"));
  EXPECT_THAT(message("layer: rms_norm\nopts: {}\n"), HasSubstr("spec.yaml:2:1: unknown key 'opts'"));
  Context context;
  const std::vector<NamedTensor> x = {{"x", random_tensor(context, {2, 8}, 1)}};
  try {
    run_layer(context, spec_of("layer: rms_norm\noptions: {epz: 1.0e-5}\n"), x);
    FAIL() << "an unknown option was taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("spec.yaml:2:11: unknown key 'epz' in options; did you mean 'eps'?"));
  }
}

}  // namespace
}  // namespace heddle
