// Tokens from a model, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "trainers/data/tokenizer.h"
#include "trainers/model/language_model.h"

namespace heddle {

struct GenerateOptions {
  int64_t tokens = 200;      // at most
  double temperature = 1.0;  // 0: always the likeliest token
  int64_t top_k = 0;         // only the k likeliest; 0: all
  double top_p = 1.0;        // only the likeliest whose probabilities reach p together
  uint64_t seed = 1;
  // The token that ends a document: nothing comes after it, and it is not shown. A document begins with it, too: it is
  // read before a prompt that does not begin with it.
  std::optional<int32_t> end = {};
  std::string stop = {};  // generate(): ends where this text was written, and leaves it out; "": does not
  std::function<bool()> stop_requested = {};  // asked after every token; ends when it says yes
  bool cuda_graph = true;                     // on a GPU, TextReader's use_graph
};

// Reads `prompt` (at least one id of the vocabulary, or none where there is an end) and calls emit(token) for each new
// token, until it returns false. Draws from the first `choices` tokens of the vocabulary. Throws Error for a prompt
// that is empty or holds other ids.
void generate_tokens(Context& context, const LanguageModel& model, std::span<const int32_t> prompt,
                     const GenerateOptions& options, int64_t choices, const std::function<bool(int32_t)>& emit);

// The same with text: calls emit() for each byte of the new tokens, which are drawn from those of the tokenizer and
// from options.end.
void generate(Context& context, const LanguageModel& model, const Tokenizer& tokenizer, std::string_view prompt,
              const GenerateOptions& options, const std::function<void(uint8_t)>& emit);

// Draws an index of `logits` with one uniform number. Among equals the lowest index is the likeliest. Throws Error when
// there are none, one of them is NaN, or the largest is infinite.
int64_t sample_token(std::span<const double> logits, const GenerateOptions& options, double uniform);

// Looks for a text in bytes that come one by one.
class StopText {
 public:
  explicit StopText(std::string text) : text_(std::move(text)) {}

  // Returns the bytes of which it is now known that they are no part of the text.
  std::string add(uint8_t byte);
  bool reached() const { return reached_; }  // the whole text was found; it is returned by nobody
  std::string rest();                        // what is left when no byte follows

 private:
  std::string text_, held_;
  bool reached_ = false;
};

// Bytes as text that a terminal can show: valid UTF-8 as it is, other bytes and control characters (but not newline and
// tab, and U+0080 to U+009F among them) as \xNN. A character is returned when its last byte was added.
class Utf8Printer {
 public:
  std::string add(uint8_t byte);
  std::string add(std::string_view bytes);
  std::string finish();  // what is left of an unfinished character

 private:
  std::string pending_;
  size_t length_ = 0;  // of the pending character
};

}  // namespace heddle
