#include "trainers/model/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "core/runtime/utf8.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

std::string escape(std::string_view bytes) {
  std::string text;
  for (char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return text;
}

// Logits of the last position after the model has read `tokens`, which continue the text of `state`.
Tensor read_part(Context& context, const LanguageModel& model, std::span<const int32_t> tokens, ModelState& state) {
  Tensor on_device;
  {
    const MemoryScope scope(context, MemoryCategory::data);
    on_device = Tensor::empty(context, {1, static_cast<int64_t>(tokens.size())}, DType::int32);
  }
  copy_from_host(context, on_device, tokens.data());
  context.synchronize();
  Tape tape(context, Tape::Mode::inference);
  return model.forward(tape, on_device, &state).value.select(1, on_device.size(1) - 1);
}

void check_prompt(std::span<const int32_t> prompt, int64_t vocab_size) {
  check(!prompt.empty(), "generate: the prompt is empty, expected at least one token");
  for (size_t i = 0; i < prompt.size(); ++i) {
    check(prompt[i] >= 0 && prompt[i] < vocab_size, "generate: token {} of the prompt is {}, expected an id in [0, {})",
          i, prompt[i], vocab_size);
  }
}

}  // namespace

std::vector<double> read_tokens(Context& context, const LanguageModel& model, std::span<const int32_t> tokens,
                                ModelState& state) {
  constexpr size_t kPart = 1024;
  for (; tokens.size() > kPart; tokens = tokens.subspan(kPart)) read_part(context, model, tokens.first(kPart), state);
  return read_values(context, read_part(context, model, tokens, state));
}

void generate_tokens(Context& context, const LanguageModel& model, std::span<const int32_t> prompt,
                     const GenerateOptions& options, int64_t choices, const std::function<bool(int32_t)>& emit) {
  std::vector<int32_t> document;
  if (options.end && (prompt.empty() || prompt.front() != *options.end)) {
    document.push_back(*options.end);
    document.insert(document.end(), prompt.begin(), prompt.end());
    prompt = document;
  }
  check_prompt(prompt, model.vocab_size());
  ModelState state = model.initial_state();
  Random random(options.seed, RandomStream::sampling);
  int32_t token = 0;
  for (int64_t i = 0; i < options.tokens; ++i) {
    std::vector<double> logits = read_tokens(context, model, prompt, state);
    logits.resize(static_cast<size_t>(std::min(choices, model.vocab_size())));
    token = static_cast<int32_t>(sample_token(logits, options, random.next_uniform()));
    if (token == options.end || !emit(token) || (options.stop_requested && options.stop_requested())) return;
    prompt = {&token, 1};
  }
}

void generate(Context& context, const LanguageModel& model, const Tokenizer& tokenizer, std::string_view prompt,
              const GenerateOptions& options, const std::function<void(uint8_t)>& emit) {
  const std::vector<int32_t> tokens = encode_text(tokenizer, prompt);
  // A separator behind the tokens of the text, as that of bytes may be, can be drawn with all before it.
  const int64_t choices = std::max(tokenizer.size(), options.end ? int64_t{*options.end} + 1 : 0);
  StopText stop(options.stop);
  const auto emit_all = [&](std::string_view bytes) {
    for (char byte : bytes) emit(static_cast<uint8_t>(byte));
  };
  generate_tokens(context, model, tokens, options, choices, [&](int32_t token) {
    for (const char byte : tokenizer.bytes_of(token)) {
      emit_all(stop.add(static_cast<uint8_t>(byte)));
      if (stop.reached()) return false;
    }
    return true;
  });
  emit_all(stop.rest());
}

int64_t sample_token(std::span<const double> logits, const GenerateOptions& options, double uniform) {
  const auto size = static_cast<int64_t>(logits.size());
  double largest = -std::numeric_limits<double>::infinity();
  for (const double logit : logits) largest = std::isnan(logit) || logit > largest ? logit : largest;
  check(std::isfinite(largest), "the largest logit of the model is {}, expected a finite number: no token can be drawn",
        unsigned_nan(largest));
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (options.temperature == 0.0) return order[0];
  int64_t kept = options.top_k > 0 ? std::min(options.top_k, size) : size;
  std::vector<double> weights(static_cast<size_t>(kept));
  double total = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((logits[order[i]] - logits[order[0]]) / options.temperature);
    total += weights[i];
  }
  // The smallest number of tokens whose share reaches top_p.
  double sum = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    sum += weights[i];
    if (sum >= options.top_p * total) kept = i + 1;
  }
  double rest = uniform * std::accumulate(weights.begin(), weights.begin() + kept, 0.0);
  for (int64_t i = 0; i < kept; ++i) {
    rest -= weights[i];
    if (rest < 0.0) return order[i];
  }
  return order[kept - 1];
}

std::string StopText::add(uint8_t byte) {
  held_ += static_cast<char>(byte);
  if (held_ == text_) {
    reached_ = true;
    held_.clear();
    return "";
  }
  // The longest end of what is held that the text begins with stays.
  size_t known = 0;
  while (!text_.starts_with(std::string_view(held_).substr(known))) ++known;
  const std::string other = held_.substr(0, known);
  held_.erase(0, known);
  return other;
}

std::string StopText::rest() { return std::exchange(held_, ""); }

std::string Utf8Printer::add(uint8_t byte) {
  if (!pending_.empty() && !continues_character(pending_, byte)) {
    const std::string broken = finish();
    return broken + add(byte);
  }
  if (pending_.empty()) length_ = length_of_character(byte);
  pending_ += static_cast<char>(byte);
  const bool control = byte < 0x80 && (byte < 0x20 || byte == 0x7F) && byte != '\n' && byte != '\t';
  if (length_ == 0 || control) return finish();
  if (pending_.size() < length_) return "";
  const bool is_c1 = pending_.size() == 2 && pending_[0] == '\xC2' && byte < 0xA0;  // U+0080 to U+009F
  if (is_c1) return finish();
  return std::exchange(pending_, "");
}

std::string Utf8Printer::add(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) text += add(static_cast<uint8_t>(byte));
  return text;
}

std::string Utf8Printer::finish() { return escape(std::exchange(pending_, "")); }

}  // namespace heddle
