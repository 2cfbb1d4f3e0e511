// Which of several sources a training sequence comes from, as a function of its number alone.   docs/model.md#sources
//
// The sources are taken off one after the other. Of the sequences that come to source i, a share p_i = w_i / (w_i + ..
// + w_k-1) is taken, spread evenly: number n of them is, where floor((n + 1) p_i) > floor(n p_i), and then it is number
// floor(n p_i) of this source; else it comes to source i + 1 as its number n - floor(n p_i). So each source has its own
// row of sequences without a gap, and after n of all each has had n times its share of them, up to less than one for
// each source before it and itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace heddle {

struct DataSource;

// A share of 1. Shares are integers over this, so the choice is exact however many sequences there are.
inline constexpr uint64_t kCertain = uint64_t{1} << 32;

// p_i 2^32, rounded to the nearest integer, of each source; the last one's is kCertain. A source that is 0 here, or
// that leaves nothing to those after it, has too little weight beside the others; its successors then are 0. Weights
// are finite and above 0.
std::vector<uint64_t> source_odds(std::span<const DataSource> sources);

// A sequence of one source.
struct SourceSequence {
  size_t source = 0;
  int64_t index = 0;  // of the source's own sequences
  bool operator==(const SourceSequence&) const = default;
};

// Where the training sequence `index` (at least 0) comes from; `odds` are those of source_odds(), at least one.
SourceSequence source_of(int64_t index, std::span<const uint64_t> odds);

}  // namespace heddle
