#include "layers/modules/mixers/softmax_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/modules/mixers/heads.h"
#include "layers/ops/softmax_attention.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

constexpr const char* kSoftmaxAttention = "softmax_attention";

// The options, when a mixer can have them.
const SoftmaxAttentionMixer::Options& checked(const SoftmaxAttentionMixer::Options& options, const BlockPlace& place) {
  check_head_count(kSoftmaxAttention, place.dim, options.heads);
  check_kv_heads(kSoftmaxAttention, options.heads, options.kv_heads);
  check(options.window >= 0, "[{}] window is {}, expected 0, for none, or more", kSoftmaxAttention, options.window);
  return options;
}

// Keys and values of the tokens before the next one. A copy shares their memory and stays what it was when tokens are
// added to the other: they are written behind those that it holds.
class KeyValueCache : public MixerState {
 public:
  // window 0: all tokens.
  KeyValueCache(int64_t window, int64_t position = 0) : window_(window), position_(position) {}

  int64_t position() const { return position_; }  // of the next token
  Tensor keys() const { return keys_.slice(1, 0, length_); }
  Tensor values() const { return values_.slice(1, 0, length_); }

  // Adds those of the next tokens, (B, n, KV, D) each.
  void append(Context& context, const Tensor& keys, const Tensor& values) {
    if (length_ > 0) {
      check(keys_.size(0) == keys.size(0), "[{}] x has a batch of {}, expected {}: that of the state",
            kSoftmaxAttention, keys.size(0), keys_.size(0));
    }
    if (length_ == 0 || length_ + keys.size(1) > keys_.size(1)) grow(context, keys, values);
    copy(context, keys_.slice(1, length_, length_ + keys.size(1)), keys);
    copy(context, values_.slice(1, length_, length_ + values.size(1)), values);
    length_ += keys.size(1);
    position_ += keys.size(1);
  }

  std::map<std::string, Tensor> save(Context& context) const override {
    std::map<std::string, Tensor> tensors{{"position", saved_position(context, position_)}};
    if (const int64_t first = first_seen(); first < length_) {
      tensors["keys"] = clone(context, keys_.slice(1, first, length_));
      tensors["values"] = clone(context, values_.slice(1, first, length_));
    }
    return tensors;
  }

 private:
  static constexpr int64_t kStep = 256;  // tokens; the capacity at least doubles, so that copying stays cheap

  // The first of the tokens held that a token to come sees.
  int64_t first_seen() const { return window_ > 0 ? std::max<int64_t>(0, length_ - (window_ - 1)) : 0; }

  // Makes room for the next tokens, and lets go of those that no token to come sees.
  void grow(Context& context, const Tensor& keys, const Tensor& values) {
    const int64_t kept = length_ - first_seen();
    const int64_t needed = std::max(kept + keys.size(1), 2 * kept);
    const auto grown = [&](const Tensor& old, const Tensor& next) {
      const MemoryScope scope(context, MemoryCategory::cache);
      const Shape shape{next.size(0), (needed + kStep - 1) / kStep * kStep, next.size(2), next.size(3)};
      const Tensor larger = Tensor::empty(context, shape, next.dtype());
      if (kept > 0) copy(context, larger.slice(1, 0, kept), old.slice(1, length_ - kept, length_));
      return larger;
    };
    keys_ = grown(keys_, keys);
    values_ = grown(values_, values);
    length_ = kept;
  }

  int64_t window_, position_;
  int64_t length_ = 0;    // tokens that are held
  Tensor keys_, values_;  // (B, capacity, KV, D)
};

}  // namespace

void SoftmaxAttentionMixerConfig::describe(ConfigFields& fields, const ModelSize& model) {
  describe_heads(fields, model, options.heads);
  describe_kv_heads(fields, options.heads, options.kv_heads);
  fields.field("window", options.window, Range::between(0, Range::count().high));
  fields.field("base", options.base, Range::positive());
  if (fields.reads() && model.dim / options.heads % 2 != 0) {
    fields.fail("heads", fmt::format("found {}: heads have {} features, expected an even number to rotate",
                                     options.heads, model.dim / options.heads));
  }
}

std::unique_ptr<Mixer> SoftmaxAttentionMixerConfig::make(const ModuleBuilder& builder, const BlockPlace& place) const {
  return std::make_unique<SoftmaxAttentionMixer>(options, builder, place);
}

SoftmaxAttentionMixer::SoftmaxAttentionMixer(const Options& options, const ModuleBuilder& builder,
                                             const BlockPlace& place)
    : options_(checked(options, place)),
      dim_(place.dim),
      kv_heads_(options.kv_heads > 0 ? options.kv_heads : options.heads),
      head_dim_(place.dim / options.heads),
      rotary_({.base = options.base}, builder.child("rotary"), options.heads, head_dim_),
      qkv_({}, builder.child("qkv"), place.dim, (options.heads + 2 * kv_heads_) * head_dim_),
      out_({.bias = false, .init_std = out_init_std(place, place.dim)}, builder.child("out"), place.dim, place.dim) {}

std::unique_ptr<MixerState> SoftmaxAttentionMixer::make_state() const {
  return std::make_unique<KeyValueCache>(options_.window);
}

std::unique_ptr<MixerState> SoftmaxAttentionMixer::load_state(Context& context,
                                                              const std::map<std::string, Tensor>& tensors) const {
  const int64_t position = loaded_position(kSoftmaxAttention, context, tensors);
  if (tensors.size() == 1) return std::make_unique<KeyValueCache>(options_.window, position);
  for (const auto& [name, tensor] : tensors) {
    if (name == "position") continue;
    check((name == "keys" || name == "values") && tensor.rank() == 4 && tensor.size(1) <= position &&
              tensor.size(2) == kv_heads_ && tensor.size(3) == head_dim_,
          "[{}] a state has no tensor {} of shape {}", kSoftmaxAttention, name, tensor.shape());
  }
  check(tensors.contains("keys") && tensors.contains("values") &&
            tensors.at("keys").shape() == tensors.at("values").shape(),
        "[{}] a state needs as many keys as values", kSoftmaxAttention);
  const Tensor& keys = tensors.at("keys");
  auto loaded = std::make_unique<KeyValueCache>(options_.window, position - keys.size(1));
  loaded->append(context, keys, tensors.at("values"));
  return loaded;
}

Variable SoftmaxAttentionMixer::forward(Tape& tape, const Variable& x, MixerState* state,
                                        const Tensor& segments) const {
  check_mixer_input(kSoftmaxAttention, x, dim_);
  check_state_use(kSoftmaxAttention, tape, state, segments);
  auto* const cache = dynamic_cast<KeyValueCache*>(state);
  check(state == nullptr || cache != nullptr, "[{}] the state is that of another mixer", kSoftmaxAttention);
  const Shape heads{x.shape()[0], x.shape()[1], options_.heads + 2 * kv_heads_, head_dim_};
  const std::vector<Variable> parts =
      tape.split(reshape(tape, qkv_.forward(tape, x), heads), 2, {options_.heads, kv_heads_, kv_heads_});
  const int64_t offset = cache != nullptr ? cache->position() : 0;
  const Variable q = rotary_.forward(tape, parts[0], offset);
  Variable k = rotary_.forward(tape, parts[1], offset), v = parts[2];
  std::optional<KeyValueCache> next;  // the state after these tokens
  if (cache != nullptr) {
    next = *cache;
    next->append(tape.context(), k.value, v.value);
    k = tape.constant(next->keys());
    v = tape.constant(next->values());
  }
  const Variable o =
      softmax_attention(tape, q, k, v, tape.constant(segments), {.causal = true, .window = options_.window});
  Variable y = out_.forward(tape, reshape(tape, o, x.shape()));
  if (next) *cache = std::move(*next);  // nothing has failed
  return y;
}

}  // namespace heddle
