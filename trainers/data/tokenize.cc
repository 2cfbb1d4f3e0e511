#include "trainers/data/tokenize.h"

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "core/runtime/error.h"
#include "trainers/data/file_format.h"
#include "trainers/data/find_files.h"
#include "trainers/data/sentencepiece.h"

namespace heddle {
namespace {

constexpr uint64_t kReportedBytes = uint64_t{1} << 20;  // of text between two reports

// Takes the first line of `text`, with its line break.
std::string_view take_line(std::string_view& text) {
  const std::string_view line = text.substr(0, std::min(text.find('\n'), text.size() - 1) + 1);
  text.remove_prefix(line.size());
  return line;
}

// Without the line break, \n or \r\n.
std::string_view without_break(std::string_view line) {
  if (line.ends_with('\n')) line.remove_suffix(1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// Takes lines up to an empty one; empty when there is none but empty ones.
std::string_view take_paragraph(std::string_view& text) {
  std::string_view rest = text, line;
  while (!rest.empty() && without_break(line = take_line(rest)).empty()) text = rest;
  const char* const begin = text.data();
  const char* end = begin;
  while (!text.empty()) {
    line = take_line(text);
    if (without_break(line).empty()) break;
    end = line.data() + line.size();
  }
  return without_break({begin, static_cast<size_t>(end - begin)});
}

class Tokenization {
 public:
  Tokenization(const Tokenizer& tokenizer, const TokenizeOptions& options, TokenWriter& writer)
      : tokenizer_(tokenizer), options_(options), writer_(writer) {}

  void add(const MappedFile& file) {
    std::string_view text = file.bytes();
    switch (options_.documents) {
      case Documents::none:
        encode(file, text);
        break;
      case Documents::file:
        add_document(file, text);
        break;
      case Documents::line:
        while (!text.empty()) add_document(file, without_break(take_line(text)));
        break;
      case Documents::paragraph:
        while (!text.empty()) add_document(file, take_paragraph(text));
        break;
    }
    done_ += file.bytes().size();
    release(file, file.bytes().size());
    released_ = 0;
  }

  TokenizeResult result() const {
    TokenizeResult result = result_;
    result.tokens = writer_.tokens();
    return result;
  }

 private:
  void add_document(const MappedFile& file, std::string_view text) {
    if (text.empty()) return;
    writer_.add({&options_.separator, 1});
    ++result_.documents;
    encode(file, text);
  }

  void encode(const MappedFile& file, std::string_view text) {
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, piece_length(text));
      const std::vector<int32_t> ids = tokenizer_.encode(piece);
      writer_.add(ids);
      count(piece, ids);
      text.remove_prefix(piece.size());
      const auto place = static_cast<size_t>(text.data() - file.bytes().data());
      if (place - released_ >= kReportedBytes) release(file, place);
    }
  }

  void count(std::string_view piece, const std::vector<int32_t>& ids) {
    decoded_.clear();
    for (const int32_t id : ids) decoded_ += tokenizer_.bytes_of(id);
    result_.bytes += piece.size();
    result_.decoded_bytes += decoded_.size();
    if (decoded_ != piece) ++result_.changed_pieces;
  }

  // The pages up to `place` of the file are done with.
  void release(const MappedFile& file, size_t place) {
    file.release(file.bytes().substr(released_, place - released_));
    released_ = place;
    const uint64_t here = place == file.bytes().size() ? 0 : place;
    if (!options_.goes_on(done_ + here)) throw Stopped("stopped before all of the text was encoded");
  }

  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  TokenWriter& writer_;
  TokenizeResult result_;
  std::string decoded_;
  uint64_t done_ = 0;    // bytes of the files before this one
  size_t released_ = 0;  // of this file
};

}  // namespace

std::vector<MappedFile> open_texts(const std::vector<std::string>& paths) {
  const DataConfig text;
  std::vector<MappedFile> texts;
  for (const std::string& pattern : paths) {
    for (const std::string& path : find_files(pattern)) format_of(texts.emplace_back(path), text, 0);
  }
  return texts;
}

TokenizeResult tokenize(const std::vector<MappedFile>& texts, const Tokenizer& tokenizer,
                        const TokenizeOptions& options, TokenWriter& writer) {
  Tokenization tokenization(tokenizer, options, writer);
  for (const MappedFile& text : texts) tokenization.add(text);
  if (writer.tokens() == 0) throw UsageError("the text has no token: all of its lines are empty");
  return tokenization.result();
}

std::string train_vocabulary(const std::vector<MappedFile>& texts, int64_t vocabulary) {
  uint64_t bytes = 0;
  for (const MappedFile& text : texts) bytes += text.bytes().size();
  const uint64_t every = (bytes + kTrainedBytes - 1) / kTrainedBytes;
  size_t file = 0;
  uint64_t line_number = 0;
  std::string_view rest, line;
  return train_sentencepiece(vocabulary, [&](std::string& next) {
    while (line.empty()) {
      while (rest.empty()) {
        if (file == texts.size()) return false;
        rest = texts[file++].bytes();
      }
      const std::string_view taken = without_break(take_line(rest));
      if (line_number++ % every == 0) line = taken;
    }
    next = line.substr(0, piece_length(line));
    line.remove_prefix(next.size());
    return true;
  });
}

}  // namespace heddle
