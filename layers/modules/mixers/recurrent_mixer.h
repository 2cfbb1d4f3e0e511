// What mixers of linear attention have in common: their state, and how it is handed on from one part of a text to the
// next.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "layers/modules/module.h"
#include "layers/ops/linear_attention.h"

namespace heddle {

class RecurrentMixer : public Mixer {
 public:
  // Checks what every mixer of this kind demands, runs mix(), and moves the state on when that has succeeded: an error
  // leaves the state as it was.
  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const final;
  std::unique_ptr<MixerState> make_state() const override;
  std::unique_ptr<MixerState> load_state(Context& context, const std::map<std::string, Tensor>& tensors) const override;

 protected:
  // Whether the state holds the sums of k beside the sums of k v^T.
  enum class KeySums { none, kept };
  struct State;

  // `type` is the name of the mixer in YAML and in errors.
  RecurrentMixer(std::string type, const BlockPlace& place, int64_t heads, KeySums key_sums = KeySums::none);

  int64_t dim() const { return dim_; }
  int64_t heads() const { return heads_; }

  // What the mixer computes of x (B, N, dim); `state` may be null.
  virtual Variable mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const = 0;
  // How many tokens come before the first of x.
  static TokensBefore tokens_before(const State* state);
  // linear_attention from the state on, in whose place the state after these tokens comes; without a state from zeros
  // on, and with `segments` from zeros on in each of them.
  static Variable attend(Tape& tape, const Variable& q, const Variable& k, const Variable& v, const Variable& log_decay,
                         const LinearAttentionOptions& options, State* state, const Tensor& segments);
  // What attend() gives where all values are 1, (B, N, H): scale * q_t . z_t, with z the sum of k, decayed as the state
  // is. For mixers that keep the sums of k, which it moves on.
  static Variable attend_to_ones(Tape& tape, const Variable& q, const Variable& k, const Variable& log_decay,
                                 const LinearAttentionOptions& options, State* state, const Tensor& segments);

 private:
  std::string type_;
  int64_t dim_, heads_;
  KeySums key_sums_;
};

}  // namespace heddle
