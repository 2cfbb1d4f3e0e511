#include "trainers/model/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "core/runtime/utf8.h"
#include "trainers/model/text_reader.h"

namespace heddle {
namespace {

std::string escape(std::string_view bytes) {
  std::string text;
  for (char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return text;
}

// The indices of logits, the likeliest first and the lowest first among equals. They are sorted only as far as they are
// asked for: most draws need few of a large vocabulary.
class LikeliestFirst {
 public:
  explicit LikeliestFirst(std::span<const double> logits) : logits_(logits), order_(logits.size()) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
  }

  int64_t operator[](int64_t place) {
    while (place >= sorted_) sort_more();
    return order_[static_cast<size_t>(place)];
  }

 private:
  void sort_more() {
    const auto is_before = [&](int64_t a, int64_t b) {
      return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    };
    const int64_t end = std::min(static_cast<int64_t>(order_.size()), std::max<int64_t>(64, 4 * sorted_));
    std::nth_element(order_.begin() + sorted_, order_.begin() + end - 1, order_.end(), is_before);
    std::sort(order_.begin() + sorted_, order_.begin() + end, is_before);
    sorted_ = end;
  }

  std::span<const double> logits_;
  std::vector<int64_t> order_;
  int64_t sorted_ = 0;
};

void check_prompt(std::span<const int32_t> prompt, int64_t vocab_size) {
  check(!prompt.empty(), "generate: the prompt is empty, expected at least one token");
  for (size_t i = 0; i < prompt.size(); ++i) {
    check(prompt[i] >= 0 && prompt[i] < vocab_size, "generate: token {} of the prompt is {}, expected an id in [0, {})",
          i, prompt[i], vocab_size);
  }
}

}  // namespace

void generate_tokens(Context& context, const LanguageModel& model, std::span<const int32_t> prompt,
                     const GenerateOptions& options, int64_t choices, const std::function<bool(int32_t)>& emit) {
  std::vector<int32_t> document;
  if (options.end && (prompt.empty() || prompt.front() != *options.end)) {
    document.push_back(*options.end);
    document.insert(document.end(), prompt.begin(), prompt.end());
    prompt = document;
  }
  check_prompt(prompt, model.vocab_size());
  TextReader reader(context, model, options.cuda_graph);
  Random random(options.seed, RandomStream::sampling);
  int32_t token = 0;
  for (int64_t i = 0; i < options.tokens; ++i) {
    std::vector<double> logits = reader.read(prompt);
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
  check(size > 0, "there are no logits: no token can be drawn");
  size_t likeliest = 0;
  for (size_t i = 1; i < logits.size() && !std::isnan(logits[likeliest]); ++i) {
    if (std::isnan(logits[i]) || logits[i] > logits[likeliest]) likeliest = i;
  }
  const double largest = logits[likeliest];
  check(std::isfinite(largest), "the largest logit of the model is {}, expected a finite number: no token can be drawn",
        unsigned_nan(largest));
  if (options.temperature == 0.0) return static_cast<int64_t>(likeliest);
  LikeliestFirst order(logits);
  const auto weight = [&](int64_t token) { return std::exp((logits[token] - largest) / options.temperature); };
  int64_t kept = options.top_k > 0 ? std::min(options.top_k, size) : size;
  double total = 0.0;
  for (int64_t i = 0; i < kept; ++i) total += weight(kept < size ? order[i] : i);
  if (options.top_p < 1.0) {  // the smallest number of tokens whose share reaches top_p
    double sum = 0.0;
    int64_t count = 0;
    while (count < kept && (count == 0 || sum < options.top_p * total)) sum += weight(order[count++]);
    kept = count;
    total = sum;
  }
  double rest = uniform * total;
  for (int64_t i = 0; i < kept; ++i) {
    const double share = weight(order[i]);
    if (share == 0.0) break;  // nor has any that follows: what is left of `rest` is rounding
    likeliest = static_cast<size_t>(order[i]);
    rest -= share;
    if (rest < 0.0) break;
  }
  return static_cast<int64_t>(likeliest);
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
