// The parameters of a model: named, initialized from the counter RNG, kept in flat buffers that the optimizer, the
// checkpoint and an all-reduce see as one vector each. Beside them the fixed values that modules need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/tensor/random.h"

namespace heddle {

// How a parameter starts. normal: mean 0 and `scale` as standard deviation; constant: `scale` everywhere.
struct Initializer {
  enum class Kind { normal, constant, values };
  Kind kind = Kind::normal;
  double scale = 0.02;
  std::vector<double> values;  // for Kind::values, row-major

  static Initializer normal(double standard_deviation) { return {Kind::normal, standard_deviation, {}}; }
  static Initializer constant(double value) { return {Kind::constant, value, {}}; }
  static Initializer given(std::vector<double> values) { return {Kind::values, 0.0, std::move(values)}; }
};

struct Parameter {
  std::string name;  // "blocks.3.mixer.qkv.weight"
  Shape shape;
  Initializer initializer;
  bool weight_decay = true;

  Tensor value;       // compute dtype; what forward reads
  Tensor master;      // float32 (float64 for float64): what the optimizer updates. Same memory as value if dtypes agree
  Gradient gradient;  // in the master's dtype
};

// Fixed values that belong to a module and are no parameters: decays, angles. Neither the flat buffers nor a checkpoint
// nor the optimizer contains them; whoever builds the model again computes the same values again.
struct Buffer {
  std::string name;  // "blocks.3.mixer.log_decay"
  Shape shape;
  std::vector<double> values;  // row-major

  Tensor value;  // float32 (float64 when the compute dtype is float64); what forward reads
};

// Two steps: layers add() their parameters and buffers while the model is built, then materialize() gives them memory.
class ParameterSet {
 public:
  // The reference stays valid as long as the set. Throws Error when the name is taken, when an extent is negative, when
  // the number of given values does not fit the shape, when the set is materialized, and when all parameters together
  // would have more than 2^60 numbers.
  Parameter& add(std::string name, const Shape& shape, Initializer initializer, bool weight_decay);

  // The same for a buffer; parameters and buffers share one space of names. Throws Error also when the number of values
  // does not fit the shape.
  Buffer& add_buffer(std::string name, const Shape& shape, std::vector<double> values);

  // Allocates the flat buffers, first the parameters with weight decay, then those without (each starts at a multiple
  // of 128 elements, gaps are zero) and initializes the masters: parameter i draws from its own substream, so its start
  // does not depend on the others. Then the buffers get their values, each in memory of its own, in the order in which
  // they were added. The flat buffers are a multiple of `parts` times 128 elements long, so that as many equal parts
  // have the alignment of parameters. Throws Error for integers, and for less than one part.
  void materialize(Context& context, DType compute_dtype, uint64_t seed, int parts = 1);

  // The parameter as a leaf of this tape.
  static Variable on(Tape& tape, Parameter& parameter);

  // Clears the flags alone, so that the next backward overwrites all gradients. The memory keeps its numbers: see the
  // next function.
  void zero_grad();
  // Sets those gradients to zero that no backward has written since zero_grad(). To be called before the flat buffer of
  // gradients is read. It does nothing when all were written. In a CUDA graph it is decided when that is captured.
  void zero_unwritten_gradients(Context& context);

  std::deque<Parameter>& all() { return parameters_; }
  const std::deque<Parameter>& all() const { return parameters_; }
  int64_t count() const { return count_; }  // numbers in all parameters, gaps not counted

  std::deque<Buffer>& buffers() { return buffers_; }
  const std::deque<Buffer>& buffers() const { return buffers_; }

  // Flat views; undefined before materialize(). value() is master() when the dtypes agree.
  const Tensor& master() const { return master_; }
  const Tensor& value() const { return value_; }
  const Tensor& gradient() const { return gradient_; }
  static constexpr int64_t kAlignment = 128;  // elements: 512 bytes of float32, 256 of bfloat16
  // Where parameter i starts in the flat buffers: a multiple of kAlignment.
  int64_t offset(size_t index) const { return offsets_[index]; }

 private:
  void check_new(const std::string& name, const Shape& shape) const;

  std::deque<Parameter> parameters_;
  std::deque<Buffer> buffers_;
  std::unordered_set<std::string> names_;  // of both
  std::vector<int64_t> offsets_;
  int64_t count_ = 0;
  Tensor master_, value_, gradient_;
};

}  // namespace heddle
