// A checkpoint that was written once, whose numbers this file knows: it is read as it was meant, and written again it
// has the same bytes. So an exchange that writing and reading have in common is noticed, too.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/golden.h"
#include "trainers/run/checkpoint.h"

namespace heddle::golden_checkpoint_test {
namespace {

namespace fs = std::filesystem;
using Values = std::vector<double>;

// Number i of the k-th kind: exact in float32, and no two are equal.
Values numbers(size_t count, int kind) {
  Values values;
  for (size_t i = 0; i < count; ++i) values.push_back(static_cast<double>(kind) + static_cast<double>(i) / 64.0);
  return values;
}

CheckpointState golden_state() {
  CheckpointState state{.step = 12, .seed = 0x123456789ABCDEF0, .config = "seed: 3\n", .program = "heddle golden"};
  state.trained_on = {.sequences = 77, .tokens = 1232};
  state.data = {.files = 2, .bytes = 12345678901, .crc32 = 0xDEADBEEF};
  state.evaluations.best = {.step = 9, .loss = 1.2345678901234567};
  state.evaluations.without_gain = 3;
  state.loss_scale = {.value = 512.0, .good_steps = 41, .left_out = 5};
  return state;
}

// In the flat buffers the matrices come first.
class GoldenCheckpoint : public ::testing::Test {
 protected:
  GoldenCheckpoint() {
    parameters_.add("first.bias", {5}, Initializer::constant(0.0), false);
    parameters_.add("matrix", {4, 3}, Initializer::constant(0.0), true);
    parameters_.add("second.matrix", {2, 2, 2}, Initializer::constant(0.0), true);
    parameters_.materialize(context_, DType::float32, 1);
  }

  fs::path write(const fs::path& folder, const Optimizer& optimizer) {
    return write_checkpoint(context_, folder, parameters_, optimizer, golden_state(), {});
  }
  // All tensors of a checkpoint by the names that they have there, with what is in them.
  std::vector<std::pair<NamedTensor, Values>> tensors(const Optimizer& optimizer) {
    std::vector<std::pair<NamedTensor, Values>> all;
    const auto state = optimizer.state();
    int kind = 0;
    for (const Parameter& parameter : parameters_.all()) {
      const auto count = static_cast<size_t>(numel(parameter.shape));
      all.push_back({{parameter.name, parameter.master}, numbers(count, ++kind)});
      for (const char* moment : {".m", ".v"}) {
        for (const NamedTensor& named : state) {
          if (named.name == parameter.name + moment) all.push_back({named, numbers(count, ++kind)});
        }
      }
    }
    EXPECT_EQ(all.size(), 9u);
    return all;
  }

  Context context_{Device{}, {.threads = 1}};
  ParameterSet parameters_;
  testing::TempFolder folder_;
};

TEST_F(GoldenCheckpoint, IsReadAsItWasMeantAndWrittenAsItWas) {
  SCOPED_TRACE(testing::kGoldenFailure);
  Optimizer optimizer(context_, parameters_, {});
  const auto all = tensors(optimizer);
  if (const fs::path folder = testing::new_golden_folder(); !folder.empty()) {
    for (const auto& [named, values] : all) write_values(context_, named.tensor, values);
    fs::remove_all(folder / "checkpoint");
    fs::create_directories(folder);
    fs::copy(write(folder_.path(), optimizer), folder / "checkpoint", fs::copy_options::recursive);
    return;
  }

  const Checkpoint golden = open_checkpoint(testing::golden_folder() / "checkpoint");
  const CheckpointState &found = golden.state, expected = golden_state();
  EXPECT_EQ(found.step, expected.step);
  EXPECT_EQ(found.seed, expected.seed);
  EXPECT_EQ(found.config, expected.config);
  EXPECT_EQ(found.program, expected.program);
  ASSERT_TRUE(found.trained_on && found.data && found.evaluations.best && found.loss_scale);
  EXPECT_EQ(found.trained_on->sequences, expected.trained_on->sequences);
  EXPECT_EQ(found.trained_on->tokens, expected.trained_on->tokens);
  EXPECT_EQ(*found.data, *expected.data);
  EXPECT_EQ(found.evaluations.best->step, expected.evaluations.best->step);
  EXPECT_EQ(found.evaluations.best->loss, expected.evaluations.best->loss);
  EXPECT_EQ(found.evaluations.without_gain, expected.evaluations.without_gain);
  EXPECT_EQ(found.loss_scale->value, expected.loss_scale->value);
  EXPECT_EQ(found.loss_scale->good_steps, expected.loss_scale->good_steps);
  EXPECT_EQ(found.loss_scale->left_out, expected.loss_scale->left_out);

  load_parameters(context_, golden, parameters_);
  load_optimizer(context_, golden, optimizer);
  for (const auto& [named, values] : all) EXPECT_EQ(read_values(context_, named.tensor), values) << named.name;

  const fs::path again = write(folder_.path(), optimizer);
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    EXPECT_EQ(read_file(again / file), read_file(golden.path / file)) << file;
  }
}

}  // namespace
}  // namespace heddle::golden_checkpoint_test
