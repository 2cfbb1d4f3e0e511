#include "trainers/model/text_reader.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

constexpr size_t kPart = 1024;  // most tokens that are read at a time

Tensor empty_numbers(Context& context, const Shape& shape) {
  const MemoryScope scope(context, MemoryCategory::data);
  return Tensor::empty(context, shape, DType::int32);
}

}  // namespace

TextReader::TextReader(Context& context, const LanguageModel& model, bool use_graph)
    : context_(context),
      model_(model),
      use_graph_(use_graph && context.backend().has_graphs()),
      state_(model.initial_state()) {}

std::vector<double> TextReader::read(std::span<const int32_t> tokens) {
  check(!tokens.empty(), "a text goes on with no token, expected at least one");
  constexpr auto kMost = int64_t{std::numeric_limits<int32_t>::max()};
  check(static_cast<int64_t>(tokens.size()) <= kMost - tokens_read_,
        "a text goes on with {} tokens after {}, expected at most {} in all", tokens.size(), tokens_read_, kMost);
  for (; tokens.size() > kPart; tokens = tokens.subspan(kPart)) read_part(tokens.first(kPart));
  if (tokens.size() > 1) return read_values(context_, read_part(tokens));
  if (use_graph_ && tokens_read_ > 0 && !step_) begin_steps();
  return step_ ? step(tokens.front()) : read_values(context_, read_part(tokens));
}

// Nothing changes where one of the states cannot stay in its place.
void TextReader::begin_steps() {
  Tensor numbers = empty_numbers(context_, {2});
  ModelState in_place;
  for (const std::unique_ptr<MixerState>& state : state_) {
    in_place.push_back(state->in_place(context_, numbers.slice(0, 1, 2)));
    if (in_place.back() == nullptr) {
      use_graph_ = false;
      return;
    }
  }
  state_ = std::move(in_place);
  step_.emplace(Step{.numbers = std::move(numbers), .host = PinnedBuffer(context_, 2 * sizeof(int32_t))});
}

// The number of tokens that were read, to where the states in place take it from.
void TextReader::write_tokens_before() {
  if (!step_) return;
  const auto before = static_cast<int32_t>(tokens_read_);
  copy_from_host(context_, step_->numbers.slice(0, 1, 2), &before);
  context_.synchronize();
}

const ModelState& TextReader::state() {
  write_tokens_before();
  return state_;
}

// The logits after the last of `tokens` (1, n).
Tensor TextReader::forward(const Tensor& tokens) {
  Tape tape(context_, Tape::Mode::inference);
  return model_.forward(tape, tokens, &state_).value.select(1, tokens.size(1) - 1);
}

Tensor TextReader::read_part(std::span<const int32_t> tokens) {
  const Tensor on_device = empty_numbers(context_, {1, static_cast<int64_t>(tokens.size())});
  copy_from_host(context_, on_device, tokens.data());
  context_.synchronize();
  write_tokens_before();
  Tensor logits = forward(on_device);
  tokens_read_ += on_device.size(1);
  return logits;
}

Tensor TextReader::compute_step() {
  copy_from_host(context_, step_->numbers, step_->host.data());
  return forward(step_->numbers.slice(0, 0, 1).reshape({1, 1}));
}

// The work of a step is run once before it is captured. What cannot be captured, as a part of a user's own that waits
// for the device, is run each time.
std::vector<double> TextReader::step(int32_t token) {
  step_->host.as<int32_t>()[0] = token;
  step_->host.as<int32_t>()[1] = static_cast<int32_t>(tokens_read_);
  if (use_graph_ && step_->ran_once && !step_->graph) {
    try {
      step_->graph = capture(context_, [&] { step_->logits = compute_step(); });
    } catch (const Error&) {
      use_graph_ = false;
    }
  }
  if (step_->graph) {
    step_->graph.replay();
  } else {
    step_->logits = compute_step();
    step_->ran_once = true;
  }
  ++tokens_read_;
  return read_values(context_, step_->logits);
}

}  // namespace heddle
