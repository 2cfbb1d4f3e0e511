// Reading a text token by token with states in place, on a CPU that says it has graphs and fails to capture them: all
// that TextReader does on a GPU but the replay, with the bits of a reader that knows of no graphs.
#include "trainers/model/text_reader.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/runtime/backend.h"
#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"

namespace heddle::text_reader_test {
namespace {

struct UnableToCapture : HostBackend {
  bool has_graphs() const override { return true; }
};

class TextReaderTest : public ::testing::Test {
 protected:
  static std::unique_ptr<LanguageModel> model_of(Context& context, const std::string& mixer) {
    auto model = std::make_unique<LanguageModel>(testing::tiny_train_config({"model.mixer=" + mixer}).model);
    model->parameters().materialize(context, DType::float32, 5);
    return model;
  }

  Context context_{std::make_unique<UnableToCapture>()};
};

// What is kept of a text, and its values when it was asked for.
struct Saved {
  explicit Saved(Context& context, const ModelState& state) {
    for (const auto& of_layer : state) {
      tensors.push_back(of_layer->save(context));
      for (const auto& [name, tensor] : tensors.back()) values.push_back(read_values(context, tensor));
    }
  }
  std::vector<std::vector<double>> values_now(Context& context) const {
    std::vector<std::vector<double>> now;
    for (const auto& of_layer : tensors) {
      for (const auto& [name, tensor] : of_layer) now.push_back(read_values(context, tensor));
    }
    return now;
  }
  std::vector<std::map<std::string, Tensor>> tensors;
  std::vector<std::vector<double>> values;
};

TEST_F(TextReaderTest, StatesInPlaceAreThoseThatAreReplaced) {
  for (const char* mixer :
       {"{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, base: 100}, gate: {act: silu, position: post}}",
        "{type: lightning, heads: 2, lrpe: {type: lrpe_cosine, base: 100, act: relu, extra_tokens: 12}}",
        "{type: linear_attention, heads: 4, kv_heads: 2, act: elu1, normalizer: true, lrpe: {type: lrpe_rotate}}",
        "{type: retention, heads: 2}", "{type: simple_gla, heads: 2}", "{type: softmax_attention, heads: 2}",
        "{pattern: [a, b], kinds: {a: {type: lightning, heads: 2}, b: {type: softmax_attention, heads: 2}}}"}) {
    const auto model = model_of(context_, mixer);
    TextReader in_place(context_, *model), replaced(context_, *model, false);
    std::vector<Saved> earlier;
    int32_t token = 0;
    for (const size_t count : {9, 1, 1, 1, 17, 1, 1}) {
      std::vector<int32_t> tokens(count);
      for (int32_t& each : tokens) each = token = (5 * token + 3) % 8;
      EXPECT_EQ(in_place.read(tokens), replaced.read(tokens)) << mixer;
      earlier.emplace_back(context_, in_place.state());
      EXPECT_EQ(earlier.back().values, Saved(context_, replaced.state()).values) << mixer;
    }
    for (const Saved& saved : earlier) {
      EXPECT_EQ(saved.values_now(context_), saved.values) << mixer << ": changed after it was saved";
    }
    EXPECT_FALSE(in_place.is_captured());
  }
}

}  // namespace
}  // namespace heddle::text_reader_test
