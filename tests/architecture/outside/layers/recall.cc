// A mixer that is put together from heddle's parts, with a state of its own.
//   [q k v] = x W_qkv;  S_t = S_{t-1} + act(k_t) v_t^T;  o_t = act(q_t)^T S_t / D;  y = o W_out
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "heddle/core/runtime/error.h"
#include "heddle/layers/modules/choices.h"
#include "heddle/layers/modules/linear.h"
#include "heddle/layers/modules/module.h"
#include "heddle/layers/ops/activation.h"
#include "heddle/layers/ops/linear_attention.h"
#include "heddle/layers/ops/view.h"
#include "layers/module.h"

namespace outside {
namespace {

using heddle::Tensor;
using heddle::Variable;

// S of each head; undefined at the start of a text, where it is zero.
struct RecallState : heddle::MixerState {
  Tensor memory;  // (B, H, D, D)

  std::map<std::string, Tensor> save(heddle::Context&) const override {
    if (!memory.defined()) return {};
    return {{"memory", memory}};
  }
};

struct Options {
  int64_t heads = 1;
  heddle::Activation act = heddle::Activation::elu1;  // of q and k
};

class Recall : public heddle::Mixer {
 public:
  Recall(const Options& options, const heddle::ModuleBuilder& builder, int64_t dim)
      : options_(options),
        dim_(dim),
        qkv_({}, builder.child("qkv"), dim, 3 * dim),
        out_({}, builder.child("out"), dim, dim) {}

  Variable forward(heddle::Tape& tape, const Variable& x, heddle::MixerState* state,
                   const heddle::Tensor& segments) const override {
    const int64_t heads = options_.heads, head_dim = dim_ / heads;
    const int64_t batch = x.shape()[0], length = x.shape()[1];
    const std::vector<Variable> qk_and_v = heddle::split_last(tape, qkv_.forward(tape, x), {2 * dim_, dim_});
    const Variable qk = heddle::activation(tape, qk_and_v[0], options_.act);
    const std::vector<Variable> q_and_k =
        tape.split(heddle::reshape(tape, qk, {batch, length, 2 * heads, head_dim}), 2, {heads, heads});
    const Variable v = heddle::reshape(tape, qk_and_v[1], {batch, length, heads, head_dim});
    auto* recall = dynamic_cast<RecallState*>(state);
    heddle::LinearAttentionInputs inputs;
    inputs.segments = segments;
    if (recall != nullptr) inputs.initial_state = tape.constant(recall->memory);
    const heddle::LinearAttention attention = heddle::linear_attention(
        tape, q_and_k[0], q_and_k[1], v, inputs,
        {.scale = 1.0 / static_cast<double>(head_dim), .return_final_state = state != nullptr});
    if (recall != nullptr) recall->memory = attention.final_state.value;
    return out_.forward(tape, heddle::reshape(tape, attention.o, x.shape()));
  }

  std::unique_ptr<heddle::MixerState> make_state() const override { return std::make_unique<RecallState>(); }

  std::unique_ptr<heddle::MixerState> load_state(heddle::Context&,
                                                 const std::map<std::string, Tensor>& tensors) const override {
    auto state = std::make_unique<RecallState>();
    for (const auto& [name, tensor] : tensors) {
      heddle::check(name == "memory" && tensor.rank() == 4 && tensor.size(1) == options_.heads,
                    "[recall] a state has no tensor {} of shape {}", name, heddle::to_string(tensor.shape()));
      state->memory = tensor;
    }
    return state;
  }

 private:
  Options options_;
  int64_t dim_;
  heddle::Linear qkv_, out_;
};

struct RecallOptions : heddle::MixerOptions {
  Options options;

  void describe(heddle::ConfigFields& fields, const heddle::ModelSize& model) override {
    fields.required("heads", options.heads, heddle::Range::at_least(1));
    fields.choice("act", options.act, heddle::activation_choices());
    if (fields.reads() && model.dim % options.heads != 0) fields.fail("heads", "expected a divisor of dim");
  }
  std::unique_ptr<heddle::Mixer> make(const heddle::ModuleBuilder& builder,
                                      const heddle::BlockPlace& place) const override {
    return std::make_unique<Recall>(options, builder, place.dim);
  }
  bool takes_segments() const override { return true; }
};

}  // namespace

std::unique_ptr<heddle::MixerOptions> make_recall_options() { return std::make_unique<RecallOptions>(); }

}  // namespace outside
