// Training a model from C++, without a configuration: layers put together by hand, a loop of five lines.
// The model sees a letter of the alphabet and learns which one follows.
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "heddle/core/tensor/transfer.h"
#include "heddle/layers/modules/embedding.h"
#include "heddle/layers/modules/feed_forward.h"
#include "heddle/layers/modules/linear.h"
#include "heddle/layers/modules/norm.h"
#include "heddle/layers/ops/cross_entropy.h"
#include "heddle/trainers/optimizer.h"

using namespace heddle;

constexpr int64_t kVocabulary = 128, kDim = 32;
const std::string kText = "abcdefghijklmnopqrstuvwxyz ";

struct Model {
  ParameterSet parameters;
  ModuleBuilder builder{parameters};
  Embedding table{{.init_std = 1.0}, builder.child("embedding"), kVocabulary, kDim};
  Norm norm{Norm::Options::of(NormType::rms_norm), builder.child("norm"), kDim};
  FeedForward channel{{.hidden = 2 * kDim}, builder.child("channel"), kDim};
  Norm last_norm{Norm::Options::of(NormType::rms_norm), builder.child("last_norm"), kDim};
  Linear head{{.bias = true, .init_std = 0.0}, builder.child("head"), kDim, kVocabulary};

  Variable logits(Tape& tape, const Tensor& tokens) const {
    const Variable x = table.forward(tape, tokens);
    const Variable y = channel.forward(tape, norm.forward(tape, x).y);
    return head.forward(tape, last_norm.forward(tape, y, x).y);  // the norm adds its residual x
  }
};

// `count` bytes of the text from `first` on, as the model takes them.
Tensor bytes(Context& context, int64_t first, int64_t count) {
  std::vector<double> values;
  for (int64_t i = first; i < first + count; ++i) values.push_back(kText[static_cast<size_t>(i) % kText.size()]);
  const Tensor tokens = Tensor::empty(context, {count}, DType::int32);
  write_values(context, tokens, values);
  return tokens;
}

std::string continue_text(Context& context, const Model& model, std::string text, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    Tape tape(context, Tape::Mode::inference);
    const Tensor last = Tensor::empty(context, {1}, DType::int32);
    write_values(context, last, {static_cast<double>(text.back())});
    const std::vector<double> logits = read_values(context, model.logits(tape, last).value);
    text += static_cast<char>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  return text;
}

int main() {
  Context context;
  Model model;
  model.parameters.materialize(context, DType::float32, /*seed=*/1);
  Optimizer optimizer(context, model.parameters, {.lr = 1e-2, .weight_decay = 0.01});

  double loss_value = 0.0;
  for (int64_t step = 1; step <= 60; ++step) {
    model.parameters.zero_grad();
    Tape tape(context);
    const Variable logits = model.logits(tape, bytes(context, 0, 64));
    const Variable loss = cross_entropy(tape, logits, bytes(context, 1, 64));
    tape.backward(loss);
    optimizer.set_step(step, 1e-2, 1.0);
    optimizer.apply();
    loss_value = read_values(context, loss.value)[0];
    if (step == 1 || step % 20 == 0) fmt::print("step {:3}  loss {:.4f}\n", step, loss_value);
  }
  const std::string text = continue_text(context, model, "j", 7);
  fmt::print("{}\n", text);
  return text == "jklmnopq" ? 0 : 1;
}
