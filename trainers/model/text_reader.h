// A text that a model reads part by part. The model keeps a state of what it has read, so with a recurrent mixer every
// token costs the same, however long the text is.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/runtime/graph.h"
#include "core/runtime/stream.h"
#include "trainers/model/language_model.h"

namespace heddle {

// On a GPU what is done for a single token is captured as a graph, and each further one is a replay: a launch instead
// of some hundred. Not where a state grows with the text, as a cache of keys and values does.
class TextReader {
 public:
  // Begins a text. Context and model must outlive the reader. `use_graph`: whether single tokens are captured where
  // they can be.
  TextReader(Context& context, const LanguageModel& model, bool use_graph = true);
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  // Reads `tokens` (at least one, ids of the vocabulary), which continue the text, and returns the logits after the
  // last of them. Many are read in parts, so that the memory does not grow with them.
  std::vector<double> read(std::span<const int32_t> tokens);

  // The states after all tokens that were read.
  const ModelState& state();
  // Whether a single token is read by a replay by now.
  bool is_captured() const { return step_ && step_->graph; }

 private:
  // Reads one token, again and again, with the states in place.
  struct Step {
    Tensor numbers;     // int32 (2): the token, and how many come before it
    PinnedBuffer host;  // where each step copies them from
    Graph graph = {};
    bool ran_once = false;
    Tensor logits = {};  // of the last step; the graph writes them
  };

  void begin_steps();
  void write_tokens_before();
  Tensor forward(const Tensor& tokens);
  Tensor read_part(std::span<const int32_t> tokens);
  std::vector<double> step(int32_t token);
  Tensor compute_step();

  Context& context_;
  const LanguageModel& model_;
  bool use_graph_;
  ModelState state_;
  int64_t tokens_read_ = 0;
  std::optional<Step> step_;
};

}  // namespace heddle
