// What the parts of a model have in common: how they get their parameters and buffers, how their options are read, and
// the two kinds of part that a block is made of.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "core/config/config_fields.h"

namespace heddle {

// Hands parameters and buffers to a module under its path: ModuleBuilder(set).child("blocks.0").add("weight", ...) is
// "blocks.0.weight". The pointers it returns stay valid as long as the set.
class ModuleBuilder {
 public:
  explicit ModuleBuilder(ParameterSet& parameters, std::string path = {})
      : parameters_(&parameters), path_(std::move(path)) {}

  ModuleBuilder child(std::string_view name) const { return ModuleBuilder(*parameters_, join(name)); }
  // Matrices decay, vectors do not, unless said otherwise.
  Parameter* add(std::string_view name, const Shape& shape, Initializer initializer) const {
    return add(name, shape, std::move(initializer), shape.rank() > 1);
  }
  Parameter* add(std::string_view name, const Shape& shape, Initializer initializer, bool weight_decay) const {
    return &parameters_->add(join(name), shape, std::move(initializer), weight_decay);
  }
  // Fixed values, row-major, in the accumulate type; no gradient, not part of a checkpoint.
  const Buffer* add_buffer(std::string_view name, const Shape& shape, std::vector<double> values) const {
    return &parameters_->add_buffer(join(name), shape, std::move(values));
  }
  const std::string& path() const { return path_; }

 private:
  std::string join(std::string_view name) const {
    return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
  }

  ParameterSet* parameters_;
  std::string path_;
};

// The sizes of a model that the options of its parts are checked against.
struct ModelSize {
  int64_t dim = 0;     // features of a token
  int64_t layers = 1;  // blocks
};

// Which block of how many a module is built for.
struct BlockPlace {
  int64_t dim = 0;
  int64_t layer = 0;
  int64_t layers = 1;
};

// How many tokens of a text come before those that a module reads: a number; or, for work that a graph repeats, one
// that lies on the device, int32 (1), and is read there each time. The number on the host then counts for nothing.
struct TokensBefore {
  int64_t count = 0;
  Tensor on_device = {};

  TokensBefore(int64_t tokens = 0) : count(tokens) {}  // NOLINT(google-explicit-constructor): a number of tokens
};

// What a mixer carries from one part of a text to the next: a recurrent state, keys and values, a position. Only the
// mixer that made it knows what is in it.
class MixerState {
 public:
  virtual ~MixerState() = default;
  // What has to be kept to go on later, by name; a position is an int32 tensor of one element. Mixer::load_state()
  // makes the same state of it. Steps that are taken afterwards leave these tensors as they are.
  virtual std::map<std::string, Tensor> save(Context& context) const = 0;
  // A copy for steps that a graph repeats: Mixer::forward() writes the next state over the last one, in memory that is
  // the copy's own, and takes the tokens before from `tokens_before`, int32 (1) on the device, which whoever repeats
  // the steps keeps up; save() gives it as the position. nullptr where that cannot be: the state grows with the text,
  // or nothing was read yet.
  virtual std::unique_ptr<MixerState> in_place(Context& /*context*/, const Tensor& /*tokens_before*/) const {
    return nullptr;
  }
};

// Mixes along the sequence: (B, N, dim) -> (B, N, dim).
class Mixer {
 public:
  virtual ~Mixer() = default;
  // With `state`, which must be one of this mixer, x continues the text that the state has seen, and the state is moved
  // on; when forward() throws, it is as it was. That is for tapes that do not record: no gradient flows through a
  // state. Batch and length may be 0. With `segments`, int32 (B, N), non-decreasing along N, x holds several documents,
  // and a token sees tokens of its own segment only; there is no state then.
  virtual Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const = 0;
  // The state at the start of a text.
  virtual std::unique_ptr<MixerState> make_state() const = 0;
  // The state that save() gave these tensors of. Throws Error when they are not those of this mixer.
  virtual std::unique_ptr<MixerState> load_state(Context& context,
                                                 const std::map<std::string, Tensor>& tensors) const = 0;
};

// Mixes the features of each token: (..., dim) -> (..., dim).
class Channel {
 public:
  virtual ~Channel() = default;
  virtual Variable forward(Tape& tape, const Variable& x) const = 0;
};

// The options of one type of mixer, or of one type of channel layer. An object with its defaults is made for each
// section of a model config, then filled by describe(); from then on it is constant, and make() builds a module of it
// for each block.
template <class Module>
class ModuleOptions {
 public:
  virtual ~ModuleOptions() = default;
  // Reads or writes every key of the section but `type`. While it reads, it checks the values against the model and
  // reports at their places.
  virtual void describe(ConfigFields& fields, const ModelSize& model) = 0;
  virtual std::unique_ptr<Module> make(const ModuleBuilder& builder, const BlockPlace& place) const = 0;
};
class MixerOptions : public ModuleOptions<Mixer> {
 public:
  // The tokens of every sequence, where the mixer takes no other number of them and a text cannot be continued.
  virtual std::optional<int64_t> fixed_length() const { return std::nullopt; }
  // Whether several documents may be packed into a sequence: Mixer::forward() keeps those of `segments` apart. A config
  // with data.pack is refused otherwise.
  virtual bool takes_segments() const { return false; }
};
using ChannelOptions = ModuleOptions<Channel>;

}  // namespace heddle
