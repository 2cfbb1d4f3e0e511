#include "trainers/data/sentencepiece.h"

#include "core/runtime/error.h"

#if HEDDLE_SENTENCEPIECE
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "trainers/data/find_files.h"
#endif

namespace heddle {

#if HEDDLE_SENTENCEPIECE
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, which stands for a space in the pieces

// What went wrong, without the place in the source of the library: "Internal: FILE(LINE) [CONDITION] REASON".
std::string reason_of(const sentencepiece::util::Status& status) {
  const std::string text = status.ToString();
  const size_t end = text.rfind("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

// The integer behind the first `words` of a text.
std::optional<int64_t> number_after(std::string_view text, std::string_view words) {
  const size_t found = text.find(words);
  if (found == std::string_view::npos) return {};
  int64_t number = 0;
  const char* const begin = text.data() + found + words.size();
  if (std::from_chars(begin, text.data() + text.size(), number).ec != std::errc()) return {};
  return number;
}

// Says which sizes of a vocabulary the text allows, in the place of words about options of sentencepiece.
void check_trained(const sentencepiece::util::Status& status, int64_t vocabulary) {
  if (status.ok()) return;
  const std::string reason = reason_of(status);
  const auto refuse = [&](const char* bound, int64_t tokens) {
    throw UsageError(
        fmt::format("found a vocabulary of {} tokens, expected {} {} for this text", vocabulary, bound, tokens));
  };
  if (const auto taken = number_after(reason, fmt::format("required_chars. {} vs ", vocabulary))) {
    refuse("at least", *taken + 1);
  }
  if (const auto most = number_after(reason, "value <= ")) refuse("at most", *most);
  fail("cannot train a vocabulary of {} tokens on this text: {}", vocabulary,
       reason.empty() ? "it holds nothing but line breaks" : reason);
}

// The byte of a piece "<0x0A>".
char byte_of(const std::string& piece, const fs::path& path) {
  unsigned value = 0;
  const char* const digits = piece.data() + 3;
  const bool is_byte = piece.size() == 6 && piece.starts_with("<0x") && piece.ends_with('>') &&
                       std::from_chars(digits, digits + 2, value, 16).ptr == digits + 2;
  check(is_byte, "{} is damaged: it has the byte '{}', expected one as <0x0A>", path.string(), piece);
  return static_cast<char>(static_cast<unsigned char>(value));
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const bool is_space = piece.starts_with(kSpace);
    text += is_space ? ' ' : piece.front();
    piece.remove_prefix(is_space ? kSpace.size() : 1);
  }
  return text;
}

class SentencePieces : public Tokenizer {
 public:
  SentencePieces(std::string_view contents, fs::path path) : path_(std::move(path)), model_(contents) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    const std::string reason = reason_of(status);
    check(status.ok() && processor_.GetPieceSize() > 0, "{} is no model of sentencepiece, or damaged{}{}",
          path_.string(), reason.empty() ? "" : ": ", reason);
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      const std::string& piece = processor_.IdToPiece(id);
      const bool is_text = !processor_.IsControl(id) && !processor_.IsUnknown(id) && !processor_.IsUnused(id);
      bytes_.push_back(!is_text                ? ""
                       : processor_.IsByte(id) ? std::string(1, byte_of(piece, path_))
                                               : with_spaces(piece));
    }
  }

  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    check(status.ok(), "{}: cannot encode a text of {} bytes: {}", path_.string(), text.size(), reason_of(status));
    return {ids.begin(), ids.end()};
  }

  std::string_view bytes_of(int32_t token) const override {
    return token >= 0 && token < size() ? std::string_view(bytes_[static_cast<size_t>(token)]) : std::string_view{};
  }

  std::optional<int32_t> separator() const override {
    if (processor_.bos_id() >= 0) return processor_.bos_id();
    if (processor_.eos_id() >= 0) return processor_.eos_id();
    return std::nullopt;
  }

  std::optional<fs::path> file() const override { return path_; }
  std::string_view model() const override { return model_; }

 private:
  fs::path path_;
  std::string model_;
  sentencepiece::SentencePieceProcessor processor_;
  std::vector<std::string> bytes_;  // of each id
};

// The lines as sentencepiece asks for them.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const NextLine& next_line) : next_line_(next_line) { Next(); }
  bool done() const override { return !has_line_; }
  void Next() override { has_line_ = next_line_(line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const NextLine& next_line_;
  std::string line_;
  bool has_line_ = false;
};

}  // namespace

bool has_sentencepiece() { return true; }

std::shared_ptr<const Tokenizer> load_sentencepiece(const std::string& path) {
  const std::string file = find_file(path);
  return make_sentencepiece(read_file(file), file);
}

std::shared_ptr<const Tokenizer> make_sentencepiece(std::string_view contents, const std::string& path) {
  return std::make_shared<SentencePieces>(contents, path);
}

std::string train_sentencepiece(int64_t vocabulary, const NextLine& next_line) {
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},  // counts are integers: no sum depends on the machine
      {"vocab_size", std::to_string(vocabulary)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"max_sentence_length", std::to_string(kPieceBytes)},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  Lines lines(next_line);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &lines, &model);
  check_trained(status, vocabulary);
  return model;
}

#else

namespace {

[[noreturn]] void fail_without_library(const std::string& what) {
  fail(
      "{} needs sentencepiece, and heddle was built without it: install the Debian package libsentencepiece-dev "
      "(./dev setup does) and build again",
      what);
}

}  // namespace

bool has_sentencepiece() { return false; }

std::shared_ptr<const Tokenizer> load_sentencepiece(const std::string& path) {
  fail_without_library(fmt::format("tokenizer '{}' (expected 'bytes' or a file)", path));
}

std::shared_ptr<const Tokenizer> make_sentencepiece(std::string_view, const std::string& path) {
  return load_sentencepiece(path);
}

std::string train_sentencepiece(int64_t, const NextLine&) { fail_without_library("training a vocabulary"); }

#endif

}  // namespace heddle
