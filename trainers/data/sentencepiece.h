// Tokenizers of sentencepiece (Kudo and Richardson, arXiv:1808.06226), where heddle was built with it: the Debian
// package libsentencepiece-dev.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "trainers/data/tokenizer.h"

namespace heddle {

// Whether heddle was built with it.
bool has_sentencepiece();

// Reads a model file, also one made elsewhere. Throws Error that names the file for what is none, and one that names
// the package when heddle was built without sentencepiece.
std::shared_ptr<const Tokenizer> load_sentencepiece(const std::string& path);
// The same of the contents of such a file, which is to be called `path`.
std::shared_ptr<const Tokenizer> make_sentencepiece(std::string_view contents, const std::string& path);

// Gives the next line of a text, without its line break; false: there is none.
using NextLine = std::function<bool(std::string& line)>;

// Trains a byte-pair encoding of `vocabulary` tokens on these lines and returns the contents of its model file. It
// gives back every text as it was: what it has no token for is written as bytes, and no text is normalized. The same
// lines give the same bytes. Ids: 0 unknown (never written), 1 <s>, 2 </s>, 3 .. 258 the bytes, then the merges and
// characters. Throws UsageError when the text has too many different characters, or too few words, for a vocabulary of
// that size, and Error where heddle was built without sentencepiece.
std::string train_sentencepiece(int64_t vocabulary, const NextLine& next_line);

}  // namespace heddle
