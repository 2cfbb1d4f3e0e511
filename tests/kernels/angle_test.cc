// Angles of position encodings against cos and sin of the exact product, in long double.
#include "kernels/position/cpu/angle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor/random.h"

namespace heddle::kernels::cpu {
namespace {

RowsView rows_of(const float* theta, int64_t heads, int64_t known) {
  return {const_cast<float*>(theta), DType::float32, heads, known, known};
}

double worst_error(const std::vector<float>& theta, int64_t position) {
  const auto count = static_cast<int64_t>(theta.size());
  AngleTable<float> table(rows_of(theta.data(), 1, count));
  std::vector<float> cosines(theta.size()), sines(theta.size());
  table.at(0, 0, count, position, cosines.data(), sines.data());
  double worst = 0.0;
  for (size_t i = 0; i < theta.size(); ++i) {
    const long double phi = static_cast<long double>(position) * static_cast<long double>(theta[i]);
    worst = std::max(worst, std::abs(static_cast<double>(cosines[i] - std::cos(phi))));
    worst = std::max(worst, std::abs(static_cast<double>(sines[i] - std::sin(phi))));
  }
  return worst;
}

class Angles : public ::testing::TestWithParam<double> {};

TEST_P(Angles, AreRightAtEveryPosition) {
  Random random(1, RandomStream::test);
  std::vector<float> theta(512);
  for (float& value : theta) value = static_cast<float>(random.next_normal() * GetParam());
  theta[0] = 0.0f;
  theta[1] = static_cast<float>(GetParam());
  for (const int64_t position : {0, 1, -3, 2047, 32767, 131071, (1 << 20) - 1}) {
    EXPECT_LE(worst_error(theta, position), 2e-7) << position;
  }
}

INSTANTIATE_TEST_SUITE_P(Scales, Angles,
                         ::testing::Values(1e-6, 1e-3, 1.0, 3.14159265, 1e3, 1e6, 1e9, 1e12, 1e15, 1e20, 1e30, 5e37));

// A theta of few digits, so that the exact product fits long double.
TEST(AngleTable, DoubleIsRightAtEveryPositionToo) {
  for (const double theta : {0.5, 3.14159265f * 1.0, 1e9, 0x1.8p60, 0x1.234p200}) {
    AngleTable<double> table({const_cast<double*>(&theta), DType::float64, 1, 1, 1});
    for (const int64_t position : {0, 1, -3, 131071, (1 << 20) - 1}) {
      double cosine = 0.0, sine = 0.0;
      table.at(0, 0, 1, position, &cosine, &sine);
      const long double phi = static_cast<long double>(position) * static_cast<long double>(theta);
      EXPECT_NEAR(cosine, static_cast<double>(std::cos(phi)), 1e-15) << theta << " " << position;
      EXPECT_NEAR(sine, static_cast<double>(std::sin(phi)), 1e-15) << theta << " " << position;
    }
  }
}

TEST(AngleTable, ShowsWhatIsNotANumber) {
  const float theta[] = {NAN, INFINITY, 1.0f};
  AngleTable<float> table(rows_of(theta, 1, 3));
  float cosines[4], sines[4];
  table.at(0, 0, 4, 5, cosines, sines);
  EXPECT_TRUE(std::isnan(cosines[0]) && std::isnan(sines[0]));
  EXPECT_TRUE(std::isnan(cosines[1]) && std::isnan(sines[1]));
  EXPECT_EQ(cosines[3], 1.0f);  // beyond theta the angle is 0
  EXPECT_EQ(sines[3], 0.0f);
}

TEST(AngleTable, LargeOnesGiveTheSameAsSmallOnes) {
  std::vector<float> theta(3000);
  for (size_t i = 0; i < theta.size(); ++i) theta[i] = 0.001f * static_cast<float>(i);
  AngleTable<float> large(rows_of(theta.data(), 3, 1000)), small(rows_of(theta.data() + 2000, 1, 1000));
  float cosines[2][1000], sines[2][1000];
  large.at(2, 0, 1000, 12345, cosines[0], sines[0]);
  small.at(0, 0, 1000, 12345, cosines[1], sines[1]);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(cosines[0][i], cosines[1][i]);
    EXPECT_EQ(sines[0][i], sines[1][i]);
  }
}

}  // namespace
}  // namespace heddle::kernels::cpu
