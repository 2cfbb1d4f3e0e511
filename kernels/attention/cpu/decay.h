// How chunked linear attention weighs the rows of a chunk on the CPU, and where a sequence is cut into chunks.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention/linear_attention.h"
#include "kernels/attention/log_decay.h"
#include "kernels/common/cpu/types.h"

namespace heddle::kernels::cpu {

inline constexpr int64_t kChunkRows = 64;

// The log decays of one head of one sequence, and where its state starts anew.
template <class A>
class HeadDecays {
 public:
  // Args: LinearAttentionForwardArgs or LinearAttentionBackwardArgs.
  template <class Args>
  HeadDecays(const Args& args, int64_t batch, int64_t head)
      : log_decay_(args.log_decay ? vector<const A>(args.log_decay) + head : nullptr),
        segments_(args.segments ? vector<const int32_t>(args.segments) + batch * args.q.length : nullptr) {
    if (!args.decay_per_token) return;
    stride_ = args.q.heads;
    if (log_decay_ != nullptr) log_decay_ += batch * args.q.length * stride_;
  }

  bool per_token() const { return stride_ != 0; }
  double log_decay(int64_t token) const { return bounded_log_decay(given(token)); }
  // Whether the token's lambda is 0.
  bool forgets(int64_t token) const { return given(token) == -std::numeric_limits<double>::infinity(); }
  // Whether nothing is left of the state before the token.
  bool starts_anew(int64_t token) const {
    return forgets(token) || (segments_ != nullptr && token > 0 && segments_[token] != segments_[token - 1]);
  }

 private:
  double given(int64_t token) const {
    return log_decay_ == nullptr ? 0.0 : static_cast<double>(log_decay_[token * stride_]);
  }

  const A* log_decay_;
  const int32_t* segments_;
  int64_t stride_ = 0;  // from one token to the next; 0: one for all
};

// Rows [begin, begin + rows) of a sequence, at most kChunkRows.
struct Chunk {
  int64_t begin, rows;
};

// Cuts a sequence into chunks such that the state of each of these heads starts anew at the first row of a chunk only.
template <class A>
std::vector<Chunk> cut_into_chunks(int64_t length, const std::vector<HeadDecays<A>>& heads) {
  std::vector<Chunk> chunks;
  for (int64_t token = 0; token < length; ++token) {
    const auto starts_anew = [&](const HeadDecays<A>& head) { return head.starts_anew(token); };
    if (chunks.empty() || chunks.back().rows == kChunkRows || std::any_of(heads.begin(), heads.end(), starts_anew)) {
      chunks.push_back({token, 0});
    }
    ++chunks.back().rows;
  }
  return chunks;
}

// The weights of the rows of one chunk. With L_i the sum of the log decays of rows 0 .. i of the chunk, they are
// exp(L_i), exp(L_last - L_j) and exp(L_i - L_j) for j <= i: exponents are never positive, so nothing overflows.
// Weights that would be subnormal in A are 0. The first row of a chunk that starts anew has no say: its state is 0.
template <class A>
class Decay {
 public:
  using Vector = Eigen::Array<A, Eigen::Dynamic, 1>;
  using Segment = Eigen::Map<const Vector>;

  Decay(const HeadDecays<A>& decays, double scale) : decays_(decays), scale_(scale) {
    if (decays.per_token()) {
      scores_.resize(kChunkRows * kChunkRows);
      return;
    }
    const double slope = decays.log_decay(0);
    for (int64_t i = 0; i <= kChunkRows; ++i) power_[i] = i == 0 ? 1.0 : std::exp(static_cast<double>(i) * slope);
    scores_.resize(kChunkRows);
    for (int64_t i = 0; i < kChunkRows; ++i) {
      to_end_[i] = rounded(power_[kChunkRows - 1 - i]);
      scores_[i] = rounded(scale * power_[kChunkRows - 1 - i]);
      from_start_[i] = rounded(scale * power_[i + 1]);
    }
  }

  // From now on the weights are those of `chunk`.
  void move_to(const Chunk& chunk) {
    if (!decays_.per_token()) return;
    std::array<double, kChunkRows> sum;
    for (int64_t i = 0; i < chunk.rows; ++i) {
      const bool counts = i > 0 || !decays_.forgets(chunk.begin);
      sum[i] = (i > 0 ? sum[i - 1] : 0.0) + (counts ? decays_.log_decay(chunk.begin + i) : 0.0);
    }
    const double last = sum[chunk.rows - 1];
    for (int64_t i = 0; i < chunk.rows; ++i) {
      power_[i + 1] = std::exp(sum[i]);
      from_start_[i] = rounded(scale_ * power_[i + 1]);
      to_end_[kChunkRows - chunk.rows + i] = rounded(std::exp(last - sum[i]));
      Eigen::Map<Vector> row(scores_.data() + i * kChunkRows, i + 1);
      row = (sum[i] - Eigen::Map<const Eigen::ArrayXd>(sum.data(), i + 1)).template cast<A>();
      row = (row < kLeastExponent).select(A(0), row.exp() * static_cast<A>(scale_));
    }
  }

  // The weight of the state before a chunk of `rows` rows in the state after it. It is not rounded to A: a long
  // sequence multiplies many of them.
  double whole(int64_t rows) const { return power_[rows]; }
  // scale * the weight of the state before the chunk in the output of row i.
  Segment from_start(int64_t rows) const { return Segment(from_start_.data(), rows); }
  // The weight of row j in the state after the chunk.
  Segment to_end(int64_t rows) const { return Segment(to_end_.data() + kChunkRows - rows, rows); }
  // scale * the weight of row j = 0 .. row in the output of row `row`.
  Segment scores(int64_t row) const {
    return Segment(scores_.data() + (decays_.per_token() ? row * kChunkRows : kChunkRows - 1 - row), row + 1);
  }

 private:
  // exp(-87) is the least power of float that is not subnormal, exp(-708) that of double.
  static constexpr A kLeastExponent = sizeof(A) == sizeof(float) ? A(-87) : A(-708);

  static A rounded(double power) {
    return std::abs(power) < static_cast<double>(std::numeric_limits<A>::min()) ? A(0) : static_cast<A>(power);
  }

  HeadDecays<A> decays_;
  double scale_;
  std::array<double, kChunkRows + 1> power_{};  // of the first rows of the chunk: power_[0] = 1
  std::array<A, kChunkRows> to_end_, from_start_;
  std::vector<A> scores_;  // of the last row, which the others are the end of; per token: of every row
};

}  // namespace heddle::kernels::cpu
