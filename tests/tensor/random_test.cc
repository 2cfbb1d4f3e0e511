#include "core/tensor/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

// Known answers of philox4x32 with 10 rounds: tests/kat_vectors of Random123 (Salmon et al., D. E. Shaw Research).
struct KnownAnswer {
  uint32_t counter[4];
  uint32_t key[2];
  uint32_t expected[4];
};

constexpr KnownAnswer kKnownAnswers[] = {
    {{0x00000000, 0x00000000, 0x00000000, 0x00000000},
     {0x00000000, 0x00000000},
     {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

TEST(PhiloxTest, GivesThePublishedKnownAnswers) {
  const auto join = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
  for (const KnownAnswer& known : kKnownAnswers) {
    const PhiloxBlock block = philox(join(known.key[0], known.key[1]), join(known.counter[2], known.counter[3]),
                                     join(known.counter[0], known.counter[1]));
    EXPECT_TRUE(std::equal(block.words, block.words + 4, known.expected));
  }
}

TEST(RandomTest, WordsAreThoseOfTheBlocksInOrder) {
  Random random(7, RandomStream::data, 3);
  for (uint64_t i = 0; i < 20; ++i) {
    const PhiloxBlock block = philox(7, static_cast<uint64_t>(RandomStream::data) | uint64_t{3} << 32, i / 4);
    EXPECT_EQ(random.position(), i);
    EXPECT_EQ(random.next_word(), block.words[i % 4]);
  }
}

TEST(RandomTest, SeekGoesAnywhere) {
  Random random(1, RandomStream::test);
  std::vector<uint32_t> words(50);
  for (uint32_t& word : words) word = random.next_word();
  for (const uint64_t position : {37, 0, 4, 49, 3}) {
    random.seek(position);
    EXPECT_EQ(random.next_word(), words[position]);
    EXPECT_EQ(random.position(), position + 1);
  }
  Random far(1, RandomStream::test);
  far.seek(uint64_t{1} << 40);
  EXPECT_EQ(far.next_word(), philox(1, static_cast<uint64_t>(RandomStream::test), uint64_t{1} << 38).words[0]);
}

// 2^-32 is the chance that two words agree: among these, none should, but for one pair in a thousand runs.
TEST(RandomTest, SeedsStreamsAndSubstreamsAreIndependent) {
  std::set<uint32_t> seen;
  size_t drawn = 0;
  for (const uint64_t seed : {0ull, 1ull, 2ull, 1ull << 32}) {
    for (const RandomStream stream :
         {RandomStream::parameters, RandomStream::data, RandomStream::sampling, RandomStream::test}) {
      for (const uint32_t substream : {0u, 1u, 2u}) {
        Random random(seed, stream, substream);
        for (int i = 0; i < 50; ++i, ++drawn) seen.insert(random.next_word());
      }
    }
  }
  EXPECT_EQ(seen.size(), drawn);
}

TEST(RandomTest, CorrelationBetweenStreamsIsThatOfChance) {
  constexpr int kCount = 20000;
  Random a(1, RandomStream::test, 0), b(1, RandomStream::test, 1), c(2, RandomStream::test, 0);
  double ab = 0, ac = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = a.next_uniform() - 0.5;
    ab += x * (b.next_uniform() - 0.5);
    ac += x * (c.next_uniform() - 0.5);
  }
  const double sigma = std::sqrt(static_cast<double>(kCount)) / 12.0;  // of the sum of products of centred uniforms
  EXPECT_LT(std::abs(ab), 4 * sigma);
  EXPECT_LT(std::abs(ac), 4 * sigma);
}

TEST(RandomTest, UniformIsBelowOne) {
  EXPECT_EQ(to_uniform(0), 0.0f);
  EXPECT_LT(to_uniform(0xffffffffu), 1.0f);
  EXPECT_EQ(to_uniform(0x80000000u), 0.5f);
  Random random(1, RandomStream::test);
  double sum = 0, squares = 0;
  for (int i = 0; i < 20000; ++i) {
    const double value = random.next_uniform();
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / 20000, 0.5, 0.01);
  EXPECT_NEAR(squares / 20000, 1.0 / 3.0, 0.01);
}

TEST(RandomTest, NextBelowStaysBelowAndReachesAll) {
  Random random(1, RandomStream::test);
  for (const uint64_t bound : {1ull, 2ull, 3ull, 7ull, 10ull}) {
    std::vector<int> counts(bound, 0);
    const int draws = static_cast<int>(2000 * bound);
    for (int i = 0; i < draws; ++i) ++counts.at(random.next_below(bound));
    // Chi squared with bound - 1 degrees of freedom: mean bound - 1, variance 2 (bound - 1).
    double chi = 0;
    for (const int count : counts) chi += (count - 2000.0) * (count - 2000.0) / 2000.0;
    const double freedom = static_cast<double>(bound) - 1;
    EXPECT_LE(chi, freedom + 5 * std::sqrt(2 * freedom)) << bound;
  }
  EXPECT_THROW(random.next_below(0), Error);
}

// With a bound of 2^63 + 1 nearly half of all draws fall beyond the last whole bound: taken modulo, they would double
// the lower half. Rejected, both halves stay alike.
TEST(RandomTest, NextBelowRejectsInsteadOfFolding) {
  const uint64_t bound = (uint64_t{1} << 63) + 1;
  Random random(1, RandomStream::test);
  int low = 0;
  constexpr int kDraws = 4000;
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = random.next_below(bound);
    ASSERT_LT(value, bound);
    low += value < bound / 2 ? 1 : 0;
  }
  EXPECT_NEAR(low, kDraws / 2.0, 4 * std::sqrt(kDraws / 4.0));
  EXPECT_NEAR(static_cast<double>(random.position()) / 2, 2.0 * kDraws, 4 * std::sqrt(2.0 * kDraws));
  const uint64_t power = uint64_t{1} << 63;
  random.seek(0);
  for (int i = 0; i < 100; ++i) EXPECT_LT(random.next_below(power), power);
  EXPECT_EQ(random.position(), 200u) << "a power of two never rejects";
}

TEST(RandomTest, NormalHasItsMoments) {
  Random random(3, RandomStream::test);
  constexpr int kCount = 40000;
  double sum = 0, squares = 0, fourth = 0;
  for (int i = 0; i < kCount; ++i) {
    const double value = random.next_normal();
    ASSERT_TRUE(std::isfinite(value));
    sum += value;
    squares += value * value;
    fourth += value * value * value * value;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 4 / std::sqrt(kCount));
  EXPECT_NEAR(squares / kCount, 1.0, 4 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(fourth / kCount, 3.0, 4 * std::sqrt(96.0 / kCount));
}

// Moments show no small factor: the numbers themselves do.
TEST(RandomTest, NumbersAreTheFormulasOfTheirWords) {
  constexpr double kWord = 0x1p-32;
  Context context;
  const Tensor tensor = Tensor::empty(context, {50}, DType::float64);
  Random words(5, RandomStream::test), normal(5, RandomStream::test), uniform(5, RandomStream::test);
  fill_normal(context, tensor, normal, 0.25, 3.0);
  for (const double value : read_values(context, tensor)) {
    const double radius = std::sqrt(-2.0 * std::log((words.next_word() + 0.5) * kWord));
    const double angle = 2.0 * std::acos(-1.0) * (words.next_word() + 0.5) * kWord;
    EXPECT_NEAR(value, 0.25 + 3.0 * radius * std::cos(angle), 1e-13);
  }
  words.seek(0);
  fill_uniform(context, tensor, uniform, -2.0, 3.0);
  for (const double value : read_values(context, tensor)) {
    EXPECT_DOUBLE_EQ(value, -2.0 + 5.0 * static_cast<double>(to_uniform(words.next_word())));
  }
}

TEST(RandomTest, FillsDependOnThePositionOnlyAndMoveOn) {
  Context context;
  const Tensor tensor = Tensor::empty(context, {10}, DType::float32),
               halves = Tensor::empty(context, {10}, DType::float32);
  Random whole(1, RandomStream::test), parts(1, RandomStream::test);
  fill_normal(context, tensor, whole, 1.0, 2.0);
  fill_normal(context, halves.slice(0, 0, 4), parts, 1.0, 2.0);
  fill_normal(context, halves.slice(0, 4, 10), parts, 1.0, 2.0);
  EXPECT_EQ(read_values(context, tensor), read_values(context, halves));
  EXPECT_EQ(whole.position(), parts.position());

  Random uniform(1, RandomStream::test);
  fill_uniform(context, tensor, uniform, -2.0, 3.0);
  for (const double value : read_values(context, tensor)) EXPECT_TRUE(value >= -2.0 && value <= 3.0);
  EXPECT_THROW(fill_normal(context, Tensor::zeros(context, {2}, DType::int32), uniform, 0.0, 1.0), Error);
}

}  // namespace
}  // namespace heddle
