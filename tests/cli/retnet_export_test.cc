// heddle export --format fla: the folder as RetNetForCausalLM of flash-linear-attention reads it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "core/tensor/transfer.h"
#include "tests/cli/process.h"
#include "tests/cli/trained_test.h"

namespace heddle::retnet_export_test {
namespace {

namespace fs = std::filesystem;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;

using Values = std::vector<double>;

nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(read_file(path)); }

// The tensors of a file and their shapes.
class Tensors {
 public:
  explicit Tensors(const fs::path& path) : reader_(path) {}
  Values operator[](const std::string& name) { return read_values(context_, reader_.read(context_, reader_.at(name))); }
  std::map<std::string, Shape> shapes() const {
    std::map<std::string, Shape> shapes;
    for (const SafetensorsEntry& entry : reader_.entries()) shapes[entry.name] = entry.shape;
    return shapes;
  }

 private:
  Context context_;
  SafetensorsReader reader_;
};

// Rows of `weight` (out, in) times x.
Values times(const Values& weight, const Values& x) {
  Values y(weight.size() / x.size(), 0.0);
  for (size_t i = 0; i < weight.size(); ++i) y[i / x.size()] += weight[i] * x[i % x.size()];
  return y;
}

Values rms_norm(const Values& x, const Values& weight, double eps) {
  double squares = 0.0;
  for (const double value : x) squares += value * value;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Values y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

void add(Values& x, const Values& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

Values head_of(const Values& x, size_t head, size_t heads) {
  const auto size = static_cast<int64_t>(x.size() / heads), begin = static_cast<int64_t>(head) * size;
  return {x.begin() + begin, x.begin() + begin + size};
}

// The halves of a head turned by the position, as the rotary embedding of that class does.
Values rotated(const Values& x, size_t position) {
  const size_t half = x.size() / 2;
  Values y(x.size());
  for (size_t i = 0; i < half; ++i) {
    const double angle =
        static_cast<double>(position) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
    y[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    y[i + half] = x[i] * std::sin(angle) + x[i + half] * std::cos(angle);
  }
  return y;
}

// What a MultiScaleRetention gives for each of the vectors x.
std::vector<Values> retention(Tensors& weights, const std::string& layer, const nlohmann::json& config,
                              const std::vector<Values>& x) {
  const auto heads = config["num_heads"].get<size_t>();
  const Values q = weights[layer + "q_proj.weight"], k = weights[layer + "k_proj.weight"],
               v = weights[layer + "v_proj.weight"], gate = weights[layer + "g_proj.weight"],
               norm = weights[layer + "g_norm_swish_gate.weight"], out = weights[layer + "o_proj.weight"];
  std::vector<Values> y;
  for (size_t t = 0; t < x.size(); ++t) {
    const Values gates = times(gate, x[t]);
    Values all;
    for (size_t head = 0; head < heads; ++head) {
      const Values query = rotated(head_of(times(q, x[t]), head, heads), t);
      const double decay = 1.0 - std::exp2(-5.0 - static_cast<double>(head));
      Values o(norm.size(), 0.0);
      for (size_t s = 0; s <= t; ++s) {
        const Values key = rotated(head_of(times(k, x[s]), head, heads), s);
        const Values value = head_of(times(v, x[s]), head, heads);
        double weight = std::pow(decay, static_cast<double>(t - s)) / std::sqrt(static_cast<double>(key.size()));
        double product = 0.0;
        for (size_t i = 0; i < key.size(); ++i) product += query[i] * key[i];
        weight *= product;
        for (size_t i = 0; i < o.size(); ++i) o[i] += weight * value[i];
      }
      o = rms_norm(o, norm, config["norm_eps"]);
      for (size_t i = 0; i < o.size(); ++i) all.push_back(o[i] * silu(gates[head * o.size() + i]));
    }
    y.push_back(times(out, all));
  }
  return y;
}

// The logits of RetNetForCausalLM by its formulas.
Values retnet_logits(Tensors& weights, const nlohmann::json& config, const Values& tokens) {
  const double eps = config["norm_eps"];
  const Values embeddings = weights["model.embeddings.weight"];
  const auto dim = config["hidden_size"].get<int64_t>();
  std::vector<Values> x;
  for (const double token : tokens) {
    const auto row = embeddings.begin() + static_cast<int64_t>(token) * dim;
    x.emplace_back(row, row + dim);
  }
  for (int layer = 0; layer < config["num_hidden_layers"].get<int>(); ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    std::vector<Values> normed;
    for (const Values& row : x) normed.push_back(rms_norm(row, weights[name + "attn_norm.weight"], eps));
    const std::vector<Values> mixed = retention(weights, name + "attn.", config, normed);
    const Values gate = weights[name + "mlp.gate_proj.weight"], up = weights[name + "mlp.up_proj.weight"],
                 down = weights[name + "mlp.down_proj.weight"], norm = weights[name + "mlp_norm.weight"];
    for (size_t t = 0; t < x.size(); ++t) {
      add(x[t], mixed[t]);
      const Values row = rms_norm(x[t], norm, eps);
      Values hidden = times(gate, row);
      const Values factor = times(up, row);
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = silu(hidden[i]) * factor[i];
      add(x[t], times(down, hidden));
    }
  }
  Values logits;
  for (const Values& row : x) {
    const Values of_row = times(weights["lm_head.weight"], rms_norm(row, weights["model.norm.weight"], eps));
    logits.insert(logits.end(), of_row.begin(), of_row.end());
  }
  return logits;
}

// The largest difference, over the largest of b.
double difference(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0.0, differs = 0.0;
  for (size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::abs(b[i]));
    differs = std::max(differs, std::abs(a[i] - b[i]));
  }
  return differs / largest;
}

class RetNetExportTest : public testing::TrainedTest {
 protected:
  // Trains a retention model, and exports it with the logits of some tokens.
  Finished train_and_export(const std::string& name, const std::vector<std::string>& overrides) {
    std::vector<std::string> all = {"model.layers=1", "model.norm={type: rms_norm}", kMixer, "trainer.steps=1"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    const Finished trained = train((folder_ / (name + "_run")).string(), all);
    EXPECT_EQ(trained.code, 0) << trained.err;
    return run_heddle({"export", (folder_ / (name + "_run")).string(), "--format", "fla", "--out",
                       (folder_ / name).string(), "--logits", "7"});
  }
  // Starts from an exported folder, and takes a step that changes next to nothing.
  Finished train_from(const std::string& name, const std::string& run, std::vector<std::string> overrides) {
    std::vector<std::string> arguments = {"train",       (folder_ / "tiny.yaml").string(),
                                          "--out",       (folder_ / run).string(),
                                          "--init-from", (folder_ / name).string(),
                                          "--device",    "cpu",
                                          "--threads",   "1"};
    overrides.insert(overrides.end(), {"schedule={type: constant}", "optimizer.lr=1.0e-20", "trainer.steps=1"});
    for (const std::string& text : overrides) arguments.insert(arguments.end(), {"--set", text});
    return run_heddle(arguments);
  }

  static constexpr const char* kMixer = "model.mixer={type: retention, heads: 2, expand_k: 0.5, expand_v: 1.5}";
};

// The names and shapes that the state_dict of RetNetForCausalLM has; bench/peers/check_retnet.py compares with the
// module itself.
TEST_F(RetNetExportTest, RetentionModelsHaveTheNamesOfRetNetForCausalLM) {
  const Finished exported = train_and_export("fla", {});
  ASSERT_EQ(exported.code, 0) << exported.err;
  const std::string layer = "model.layers.0.";
  const std::map<std::string, Shape> expected = {{"model.embeddings.weight", {8, 16}},
                                                 {layer + "attn_norm.weight", {16}},
                                                 {layer + "attn.q_proj.weight", {8, 16}},
                                                 {layer + "attn.k_proj.weight", {8, 16}},
                                                 {layer + "attn.v_proj.weight", {24, 16}},
                                                 {layer + "attn.g_proj.weight", {24, 16}},
                                                 {layer + "attn.g_norm_swish_gate.weight", {12}},
                                                 {layer + "attn.o_proj.weight", {16, 24}},
                                                 {layer + "mlp_norm.weight", {16}},
                                                 {layer + "mlp.gate_proj.weight", {16, 16}},
                                                 {layer + "mlp.up_proj.weight", {16, 16}},
                                                 {layer + "mlp.down_proj.weight", {16, 16}},
                                                 {"model.norm.weight", {16}},
                                                 {"lm_head.weight", {8, 16}}};
  Tensors theirs(folder_ / "fla/model.safetensors");
  EXPECT_EQ(theirs.shapes(), expected);
  const nlohmann::json config = json_of(folder_ / "fla/config.json");
  EXPECT_EQ(config["architectures"], nlohmann::json({"RetNetForCausalLM"}));
  EXPECT_EQ(config["expand_v"], 1.5);
  EXPECT_EQ(config["intermediate_size"], 16);
  EXPECT_EQ(config["norm_eps"], 1e-5);

  // Back again: both halves of w12 are where they were.
  const Finished read = train_from("fla", "again", {"model.layers=1", "model.norm={type: rms_norm}", kMixer});
  ASSERT_EQ(read.code, 0) << read.err;
  Tensors again(folder_ / "again/checkpoints/step_1/model.safetensors");
  Values halves = theirs[layer + "mlp.gate_proj.weight"];
  const Values up = theirs[layer + "mlp.up_proj.weight"];
  halves.insert(halves.end(), up.begin(), up.end());
  EXPECT_EQ(again["blocks.0.channel.w12.weight"], halves);
  EXPECT_EQ(again["blocks.0.mixer.v_proj.weight"], theirs[layer + "attn.v_proj.weight"]);
  EXPECT_THAT(train_from("fla", "other", {}).err,
              HasSubstr("is a RetNetForCausalLM, which the model of the config is not"));
}

// That class has one eps for all norms. With two of them v is scaled: what is computed stays the same.
TEST_F(RetNetExportTest, TwoEpsilonsBecomeOne) {
  const std::vector<std::string> model = {
      "model.layers=2", "model.norm={type: rms_norm, eps: 0.3}",
      "model.mixer={type: retention, heads: 2, expand_k: 0.5, expand_v: 1.5, eps: 0.02}", "trainer.dtype=float64"};
  std::vector<std::string> trained = model;
  trained.insert(trained.end(), {"trainer.steps=10", "optimizer.lr=0.05"});
  const Finished exported = train_and_export("fla", trained);
  ASSERT_EQ(exported.code, 0) << exported.err;
  nlohmann::json config = json_of(folder_ / "fla/config.json");
  EXPECT_EQ(config["norm_eps"], 0.3);
  Tensors weights(folder_ / "fla/model.safetensors"), expected(folder_ / "fla/logits.safetensors");
  EXPECT_LE(difference(retnet_logits(weights, config, expected["tokens"]), expected["logits"]),
            1e-6);            // angles are float32
  config["norm_eps"] = 0.02;  // the formulas tell them apart
  EXPECT_GE(difference(retnet_logits(weights, config, expected["tokens"]), expected["logits"]), 1e-3);

  ASSERT_EQ(train_from("fla", "again", model).code, 0);
  Tensors before(folder_ / "fla_run/checkpoints/step_10/model.safetensors"),
      again(folder_ / "again/checkpoints/step_1/model.safetensors");
  for (const char* name : {"blocks.0.mixer.v_proj.weight", "blocks.1.mixer.q_proj.weight"}) {
    EXPECT_LE(difference(again[name], before[name]), 1e-15) << name;
  }
}

TEST_F(RetNetExportTest, TheSeparatorOfDocumentsIsItsFirstAndLastToken) {
  ASSERT_EQ(train_and_export("none", {}).code, 0);
  EXPECT_EQ(json_of(folder_ / "none/config.json")["bos_token_id"], nullptr);
  const Finished exported = train_and_export(
      "fla", {"data={type: text, path: '" + text_ + "', pack: true, separator: 10}", "model.vocab_size=256"});
  ASSERT_EQ(exported.code, 0) << exported.err;
  const nlohmann::json config = json_of(folder_ / "fla/config.json");
  EXPECT_EQ(config["bos_token_id"], 10);
  EXPECT_EQ(config["eos_token_id"], 10);
}

TEST_F(RetNetExportTest, ANormWithoutEpsIsRefused) {
  EXPECT_THAT(train_and_export("none", {"model.norm={type: rms_norm, eps: 0}"}).err,
              HasSubstr("RetNetForCausalLM cannot compute this model: model.norm.eps is 0"));
}

}  // namespace
}  // namespace heddle::retnet_export_test
