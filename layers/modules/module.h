// What the parts of a model have in common: how they get their parameters, and the two kinds of part that a block is
// made of.
#pragma once

#include <memory>
#include <string>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"

namespace heddle {

// Hands parameters to a module under its path: ModuleBuilder(set).child("blocks.0").add("weight", ...) is
// "blocks.0.weight".
class ModuleBuilder {
 public:
  explicit ModuleBuilder(ParameterSet& parameters, std::string path = {})
      : parameters_(&parameters), path_(std::move(path)) {}

  ModuleBuilder child(std::string_view name) const { return ModuleBuilder(*parameters_, join(name)); }
  // Matrices decay, vectors do not, unless said otherwise. The pointer stays valid as long as the set.
  Parameter* add(std::string_view name, const Shape& shape, Initializer initializer) const {
    return add(name, shape, std::move(initializer), shape.rank() > 1);
  }
  Parameter* add(std::string_view name, const Shape& shape, Initializer initializer, bool weight_decay) const {
    return &parameters_->add(join(name), shape, std::move(initializer), weight_decay);
  }
  const std::string& path() const { return path_; }

 private:
  std::string join(std::string_view name) const {
    return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
  }

  ParameterSet* parameters_;
  std::string path_;
};

// What a sequence mixer carries from one stretch of tokens to the next: the recurrent state, and how many tokens it
// has seen. Empty at the start of a text.
struct MixerState {
  Tensor state;        // (B, H, D, Dv), accumulate type; undefined: zeros
  int64_t offset = 0;  // position of the next token
};

// Mixes along the sequence: (B, N, dim) -> (B, N, dim).
class Mixer {
 public:
  virtual ~Mixer() = default;
  // With `state`, x continues the text that the state has seen, and the state is moved on. For inference only: no
  // gradient flows through a state.
  virtual Variable forward(Tape& tape, const Variable& x, MixerState* state) const = 0;
};

// Mixes the features of each token: (..., dim) -> (..., dim).
class Channel {
 public:
  virtual ~Channel() = default;
  virtual Variable forward(Tape& tape, const Variable& x) const = 0;
};

// Which block of how many a module is built for.
struct BlockPlace {
  int64_t dim = 0;
  int64_t layer = 0;
  int64_t layers = 1;
};

}  // namespace heddle
