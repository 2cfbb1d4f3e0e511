// The operator of a benchmark on tensors of its config.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/autograd/tape.h"
#include "core/tensor/random.h"
#include "layers/registry.h"
#include "tools/benchmark_suite.h"

namespace heddle {

// Normal numbers. Large tensors repeat a block of 2^20: distinct enough for timing, and quickly made.
void fill_quickly(Context& context, const Tensor& tensor, Random& random);

// The tensors of one config at one size, and its operator as a function of them. The context, the registry and the
// config must outlive it. All functions throw Error for a config that does not fit its operator.
class BenchmarkSubject {
 public:
  BenchmarkSubject(Context& context, const Registry& registry, const BenchmarkConfig& config, int64_t n);

  // Forward on a tape of its own, outputs kept.
  void forward();
  // The upstream gradients of the outputs, which backward() needs.
  void make_upstream();
  void backward();
  // Frees what the pass made: the tape and the outputs.
  void backward_done();
  void drop_gradients();

  // Bytes that the pass ("fwd" or "bwd") must move: gradients that are added to are read as well as written.
  int64_t bytes(const std::string& pass, bool accumulate) const;

 private:
  bool inputs_holds(const Variable& output) const;
  // What the suite says, or else everything: inputs and outputs; in backward inputs, upstream gradients and gradients.
  std::vector<std::string> moved(const std::string& pass) const;
  void draw(const InputSpec& spec, const Tensor& tensor, Random& random);
  // Whether the operator's own cases draw this input as a decay, a number below 0.
  bool is_decay(const std::string& name) const;
  uint64_t index_bound(const std::string& input) const;

  Context& context_;
  const BenchmarkConfig& config_;
  const Operator& op_;
  const OperatorFunction function_;
  std::map<std::string, Tensor> inputs_;
  std::map<std::string, Gradient> gradients_;
  std::map<std::string, Tensor> upstream_;
  NamedVariables outputs_;
  std::unique_ptr<Tape> tape_;
};

}  // namespace heddle
