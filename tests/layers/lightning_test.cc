#include "layers/modules/mixers/lightning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/layers/mixer_of.h"

namespace heddle::lightning_test {
namespace {

using test::make_mixer;
using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;
using ::testing::ThrowsMessage;
using ::testing::UnorderedElementsAre;

constexpr const char* kFull =
    "{type: lightning, heads: 2, act: silu, lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, layers: [0]}, "
    "gate: {act: sigmoid, position: post, rank: 3}}";

TEST(LightningTest, DecayIsThatOfThePaper) {
  const std::vector<double> first = lightning_log_decay(4, 0, 3), last = lightning_log_decay(4, 2, 3);
  EXPECT_THAT(first, Pointwise(DoubleNear(1e-15), {-1.00001 / 4, -1.00001 / 16, -1.00001 / 64, -1.00001 / 256}));
  EXPECT_THAT(last, Pointwise(DoubleNear(1e-15), {-1e-5 / 4, -1e-5 / 16, -1e-5 / 64, -1e-5 / 256}));
  EXPECT_EQ(lightning_log_decay(1, 0, 1).at(0), -std::exp2(-8.0) * (1.0 + 1e-5));
}

TEST(LightningTest, ParametersByName) {
  const auto names = [](const char* options) {
    ParameterSet parameters;
    const auto mixer = make_mixer(options, ModuleBuilder(parameters, "mixer"), {8, 0, 2});
    std::vector<std::string> result;
    for (const Parameter& parameter : parameters.all()) {
      result.push_back(parameter.name + " " + to_string(parameter.shape));
    }
    return result;
  };
  EXPECT_THAT(names(kFull), UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.gate.down.weight (3, 8)",
                                                 "mixer.gate.up.weight (8, 3)", "mixer.out.weight (8, 8)"));
  EXPECT_THAT(names("{type: lightning, heads: 2, gate: {act: silu}}"),
              UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.gate.weight (8, 8)", "mixer.out.weight (8, 8)"));
  EXPECT_THAT(names("{type: lightning, heads: 2}"),
              UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.out.weight (8, 8)"));
}

TEST(LightningTest, BadOptionsNameTheirPlace) {
  const auto build = [](const std::string& options, const BlockPlace& place = {8, 0, 2}) {
    return [=] {
      ParameterSet parameters;
      make_mixer(options, ModuleBuilder(parameters), place);
    };
  };
  const auto message = [](const char* text) { return ThrowsMessage<ConfigError>(HasSubstr(text)); };
  EXPECT_THAT(build("{type: lightning}"), message("heads"));
  EXPECT_THAT(build("{type: lightning, heads: 3}"),
              message("model.yaml:1:26: heads: found 3, expected a divisor of dim, which is 8"));
  EXPECT_THAT(build("{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, layers: [2]}}"), message("layers"));
  EXPECT_THAT(build("{type: lightning, heads: 8, lrpe: {type: lrpe_rotate}}"),
              message("lrpe: heads have 1 features, expected an even number"));
  EXPECT_THAT(build("{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, bse: 1, layers: [1]}}"),
              message("did you mean 'base'"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gate: {rank: -1}}"), message("gate.rank"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gate: {position: after}}"), message("gate.position"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gat: {}}"), message("did you mean 'gate'"));
}

}  // namespace
}  // namespace heddle::lightning_test
