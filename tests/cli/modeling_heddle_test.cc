// export/modeling_heddle.py, which heddle export writes beside the weights. Skipped where torch is not installed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "tests/cli/export_test.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/sentencepiece.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::append;
using testing::ExportTest;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::run_heddle;
using testing::TempFolder;

// Whether python3 has these modules, "torch, safetensors".
bool has_modules(const std::string& names) {
  return std::system(fmt::format("python3 -c 'import {}' > /dev/null 2>&1", names).c_str()) == 0;
}

bool has_torch() { return has_modules("torch, safetensors"); }

class ExportedTextTest : public ExportTest {
 protected:
  // Exports the run and compares what both make of the prompt.
  void compare(const std::string& prompt) {
    ASSERT_EQ(export_to("hf").code, 0);
    const Finished ours = run_heddle({"generate", run_, "--prompt", prompt, "--tokens", "40", "--temperature", "0"});
    ASSERT_EQ(ours.code, 0) << ours.err;
    const std::string command = "python3 '" + (folder_ / "hf/modeling_heddle.py").string() + "' '" +
                                (folder_ / "hf").string() + "' --prompt '" + prompt +
                                "' --tokens 40 --temperature 0 > '" + (folder_ / "text").string() + "'";
    ASSERT_EQ(std::system(command.c_str()), 0);
    EXPECT_EQ(read_file(folder_ / "text"), ours.out);
  }
};

TEST_F(ExportedTextTest, IsThatOfHeddle) {
  if (!has_torch()) GTEST_SKIP() << "python3 has no torch and safetensors";
  compare("the ");
  train_packed();
  compare("the ");
  compare("");
}

// The pieces of bytes among them, of which a model of a few steps writes many that are no UTF-8.
TEST_F(ExportedTextTest, OfPiecesIsThatOfHeddle) {
  if (!has_sentencepiece() || !has_modules("torch, safetensors, sentencepiece")) {
    GTEST_SKIP() << "heddle was built without sentencepiece, or python3 lacks it, torch or safetensors";
  }
  const std::string tokens = (folder_ / "fox.bin").string(), model = (folder_ / "fox.model").string();
  ASSERT_EQ(run_heddle({"tokenize", text_, "--out", tokens, "--train-vocab", "290"}).code, 0);
  run_ = (folder_ / "pieces").string();
  const Finished trained =
      train(run_, {"data={type: tokens, path: '" + tokens + "', tokenizer: '" + model + "'}", "model.vocab_size=290",
                   "trainer.sample=null", "trainer.sequence_length=8", "trainer.steps=1"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  compare("  the fox");
  compare("\xff\xfe \xe2\x98\x83");
}

// Calls main() of modeling_heddle.py, of the folder argv[1], once for each line of stdin, a JSON list of arguments, and
// prints the exit code and what went to stderr as a line of JSON. All in one process: torch takes seconds to be loaded.
constexpr const char* kCallMain = R"(
import contextlib, io, json, sys, traceback
sys.path.insert(0, sys.argv[1])
import modeling_heddle
for line in sys.stdin:
    sys.argv[1:] = json.loads(line)
    code, err = 1, io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = modeling_heddle.main()
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    print(json.dumps([code, err.getvalue()]))
)";

// As heddle generate does, and without a traceback of Python.
TEST_F(ExportTest, ThePythonFileSaysWhatIsWrong) {
  if (!has_torch()) GTEST_SKIP() << "python3 has no torch and safetensors";
  ASSERT_EQ(export_to("hf").code, 0);
  struct Call {
    std::string arguments;  // JSON
    int code;
    std::string said;
    std::string folder = "hf";
  };
  const auto damage = [&](const char* copy, const char* name, const std::string& contents) {
    fs::copy(folder_ / "hf", folder_ / copy);
    write_file(folder_ / copy / name, contents);
  };
  const auto damage_config = [&](const char* copy, const std::string& place, const nlohmann::json& value) {
    nlohmann::json config = nlohmann::json::parse(read_file(folder_ / "hf/config.json"));
    config[nlohmann::json::json_pointer(place)] = value;
    damage(copy, "config.json", config.dump());
  };
  nlohmann::json config = nlohmann::json::parse(read_file(folder_ / "hf/config.json"));
  config["model"].erase("dim");
  damage("no_dim", "config.json", config.dump());
  damage("list", "config.json", "[]");
  damage_config("text_dim", "/model/dim", "wide");
  damage_config("act", "/model/channel/act", "sliu");
  damage_config("mixer_act", "/model/mixer/act", "sliu");
  damage_config("mixer", "/model/mixer/type", "lightening");
  damage_config("channel", "/model/channel/type", nlohmann::json::array());
  damage_config("norm", "/model/norm/type", "rmsnorm");
  damage_config("lrpe", "/model/mixer/lrpe/type", "rope");
  damage_config("theta_init", "/model/mixer/lrpe/theta_init", "low");
  damage_config("tokens", "/tokens", "words");
  std::string weights = read_file(folder_ / "hf/model.safetensors");
  weights.replace(weights.size() - 4, 4, "\xff\xff\xff\xff");  // a NaN of head.weight
  damage("nan", "model.safetensors", weights);
  damage("both", "model.safetensors.index.json", "{}");
  damage("no_map", "model.safetensors.index.json", "{}");
  fs::remove(folder_ / "no_map/model.safetensors");
  const auto damage_tensor = [&](const char* copy, const char* name, DType dtype) {
    Context context;
    const SafetensorsReader reader(folder_ / "hf/model.safetensors");
    std::vector<NamedTensor> tensors;
    for (const SafetensorsEntry& entry : reader.entries()) {
      tensors.push_back({entry.name, Tensor::zeros(context, entry.shape, entry.name == name ? dtype : entry.dtype)});
    }
    fs::copy(folder_ / "hf", folder_ / copy);
    write_safetensors(context, folder_ / copy / "model.safetensors", tensors);
  };
  damage_tensor("narrow", "head.weight", DType::bfloat16);
  damage_tensor("integer", "head.weight", DType::int32);
  ASSERT_EQ(export_to("twice", {"--shard-size", "16KB"}).code, 0);
  const nlohmann::json places =
      nlohmann::json::parse(read_file(folder_ / "twice/model.safetensors.index.json")).at("weight_map");
  const std::string first = places.at("embedding.weight"), last = places.at("head.weight");
  ASSERT_NE(first, last);
  fs::copy_file(folder_ / "twice" / first, folder_ / "twice" / last, fs::copy_options::overwrite_existing);
  const std::vector<Call> calls = {
      {R"(["--temperature", "-1"])", 2, "--temperature: found '-1', expected a number >= 0"},
      {R"(["--temperature", "nan"])", 2, "found 'nan'"},
      {R"(["--top-p", "2"])", 2, "--top-p: found '2', expected a number in [0, 1]"},
      {R"(["--top-p", "01"])", 2, "--top-p: found '01', expected a decimal number without leading zeros"},
      {R"(["--top-k", "-3"])", 2, "--top-k: found '-3'"},
      {R"(["--tokens", "-1"])", 2, "--tokens: found '-1'"},
      {R"(["--tokens", "1_0"])", 2, "--tokens: found '1_0'"},
      {R"(["--seed", "-1"])", 2, "--seed: found '-1'"},
      {R"(["--prompt-tokens", "1,x"])", 2, "--prompt-tokens"},
      {R"(["--prompt-tokens", "1, 010"])", 2, "--prompt-tokens: found '010', expected a decimal number"},
      {R"(["--prompt-tokens", "0, 10", "--tokens", "1"])", 0, ""},
      {R"(["--prompt-tokens", "1,256"])", 2, "expected a prompt of tokens in [0, 256)"},
      {R"(["--prompt", "a", "--prompt-tokens", "1"])", 2, "not allowed with argument --prompt"},
      {R"(["--device", "meta"])", 1, "error: Cannot copy out of meta tensor"},
      {R"([])", 1, "no_dim/config.json: model.dim is missing", "no_dim"},
      {R"([])", 1, "text_dim/config.json describes no model of heddle: ", "text_dim"},
      {R"([])", 1, "act/config.json: model.channel.act is 'sliu', expected one of none, relu, sigmoid, silu, elu1",
       "act"},
      {R"([])", 1, "mixer_act/config.json: model.mixer.act is 'sliu', expected one of none, relu, ", "mixer_act"},
      {R"([])", 1, "mixer/config.json: model.mixer.type is 'lightening', expected one of lightning, ", "mixer"},
      {R"([])", 1, "channel/config.json: model.channel.type is [], expected one of glu, ffn", "channel"},
      {R"([])", 1, "norm/config.json: model.norm.type is 'rmsnorm', expected one of layer_norm, rms_norm, ", "norm"},
      {R"([])", 1, "lrpe/config.json: model.mixer.lrpe.type is 'rope', expected one of lrpe_rotate, lrpe_cosine",
       "lrpe"},
      {R"([])", 1, "model.mixer.lrpe.theta_init is 'low', expected one of rope, low_half, high_half", "theta_init"},
      {R"([])", 1, "tokens/config.json: tokens is 'words', expected one of bytes, pieces, ids", "tokens"},
      {R"([])", 1, "narrow/model.safetensors: tensor 'head.weight' is bfloat16, expected float32, the dtype of",
       "narrow"},
      {R"(["--dtype", "float32", "--tokens", "1"])", 0, "", "narrow"},
      {R"([])", 1, "integer/model.safetensors: tensor 'head.weight' is int32, expected a floating dtype", "integer"},
      {R"([])", 1, fmt::format("twice/{}: tensor 'embedding.weight' is in {}, too, expected in one", last, first),
       "twice"},
      {R"([])", 1, "list/config.json has model_type None", "list"},
      {R"([])", 1, "both holds model.safetensors and model.safetensors.index.json, expected one of them", "both"},
      {R"([])", 1, "no_map/model.safetensors.index.json: 'weight_map' is missing", "no_map"},
      {R"(["--temperature", "0"])", 1, "error: the largest logit of the model is nan", "nan"},
      {R"(["--check"])", 1, "hf/logits.safetensors; heddle export --logits N writes them"},
      {R"(["--prompt", "\udcff", "--tokens", "1"])", 0, ""},  // no UTF-8, and a prompt of bytes all the same
  };
  std::string lines;
  const auto file = [&](const std::string& name) { return (folder_ / name).string(); };
  for (const Call& call : calls) {
    const char* comma = call.arguments == "[]" ? "" : ", ";
    lines += fmt::format("[\"{}\"{}{}\n", file(call.folder), comma, call.arguments.substr(1));
  }
  write_file(folder_ / "calls", lines);
  write_file(folder_ / "call_main.py", kCallMain);
  ASSERT_EQ(std::system(fmt::format("python3 -B '{}' '{}' < '{}' > '{}'", file("call_main.py"), file("hf"),
                                    file("calls"), file("answers"))
                            .c_str()),
            0);
  std::istringstream answers(read_file(folder_ / "answers"));
  for (const Call& call : calls) {
    std::string line;
    ASSERT_TRUE(std::getline(answers, line)) << call.arguments;
    const nlohmann::json answer = nlohmann::json::parse(line);
    const std::string said = answer.at(1);
    EXPECT_EQ(answer.at(0), call.code) << call.arguments << said;
    EXPECT_THAT(said, AllOf(HasSubstr(call.said), Not(HasSubstr("Traceback")))) << call.arguments;
    EXPECT_EQ(said.empty(), call.said.empty()) << call.arguments << said;
  }
}

// Options that no config of configs/models has.
const std::vector<std::vector<std::string>> kOddModels = {
    {"model.norm={type: layer_norm, eps: 1.0e-5, scale: 0.5}", "model.tie_embeddings=true", "model.dropout=0.1",
     "model.mixer={type: lightning, heads: 4, act: elu1, gate: {act: silu, position: pre, rank: 0}, lrpe: {type: "
     "lrpe_cosine, learnable: true, per_head: true, act: sigmoid, theta_init: low_half, extra_tokens: 3}}",
     "model.channel={type: ffn, hidden: 50, act: gelu_tanh}"},
    {"model.norm={type: group_norm, groups: 3}", "model.channel={type: ffn, hidden: 50, act: relu2}",
     "model.mixer={type: linear_attention, heads: 6, kv_heads: 2, act: softmax, decay: true, normalizer: true, lrpe: "
     "{type: lrpe_rotate, pairing: interleaved, theta_init: high_half, learnable: true}}"},
    {"model.norm={type: group_rms_norm, groups: 4, weight: false, bias: true}", "model.layers=1",
     "model.mixer={type: softmax_attention, heads: 6, kv_heads: 2, window: 5, base: 100}",
     "model.channel={type: glu, hidden: 20, act: tanh}"},
    {"model.norm={type: group_srms_norm, groups: 2, weight: true}", "model.layers=5", "trainer.dtype=bfloat16",
     "model.mixer={pattern: [a, b, c], kinds: {a: {type: retention, heads: 3, expand_k: 0.5, expand_v: 1.5, base: 50}, "
     "b: {type: simple_gla, heads: 2, expand_k: 0.5, divisor: 4}, c: {type: softmax_attention, heads: 2, window: 1}}}",
     "model.channel={type: glu, hidden: 20, act: gelu}"},
    {"model.norm={type: srms_norm}", "trainer.dtype=float64", "model.channel={type: ffn, hidden: 8, act: relu}",
     "model.mixer={type: linear_attention, heads: 4, act: silu, lrpe: {type: lrpe_cosine, layers: [1]}}"},
    {"model.mixer={type: lightning, heads: 4, act: none, lrpe: {type: lrpe_cosine, shape: [2, 3, 4], act: softmax}}",
     "model.channel={type: glu, hidden: 20, act: sigmoid}"}};

// A few steps with a high rate, so that no parameter is as it started.
std::vector<std::string> few_steps(const std::string& config, const std::string& run, const std::string& length,
                                   const std::vector<std::string>& overrides) {
  std::vector<std::string> arguments = {"train", config, "--out", run, "--device", "cpu", "--threads", "1"};
  append(arguments, {"data.path='" HEDDLE_SOURCE_DIR "/tests/golden/text.txt'", "model.dim=48", "model.layers=2",
                     "optimizer.lr=0.02", "schedule={type: constant}", "trainer.steps=3", "trainer.batch_size=2",
                     "trainer.sequence_length=" + length, "trainer.eval_batches=1", "trainer.sample=null"});
  append(arguments, overrides);
  return arguments;
}

// Every mixer, norm, activation and position encoding: logits of one pass, and of tokens read one after the other.
TEST(ExportParityTest, LogitsAreThoseOfPyTorch) {
  if (!has_torch()) GTEST_SKIP() << "python3 has no torch and safetensors";
  const TempFolder folder;
  std::string folders;
  const auto add = [&](const std::string& name, const std::string& config, const std::string& length,
                       const std::vector<std::string>& overrides) {
    const std::string run = (folder / (name + ".run")).string(), out = (folder / name).string();
    const Finished trained = run_heddle(few_steps(config, run, length, overrides));
    ASSERT_EQ(trained.code, 0) << trained.err;
    const Finished exported = run_heddle({"export", run, "--out", out, "--logits", length});
    ASSERT_EQ(exported.code, 0) << exported.err;
    folders += " '" + out + "'";
  };
  for (const fs::path& config : testing::model_configs()) {
    if (config.stem().string().ends_with("_toy")) add(config.stem().string(), config.string(), "150", {});
  }
  for (size_t i = 0; i < kOddModels.size(); ++i) {
    const std::string length = i + 1 == kOddModels.size() ? "24" : "150";  // the last one reads a grid
    add(fmt::format("odd{}", i), HEDDLE_SOURCE_DIR "/configs/models/linear_toy.yaml", length, kOddModels[i]);
  }
  const std::string program =
      "import sys, pathlib; sys.path.insert(0, \"" HEDDLE_SOURCE_DIR
      "/export\"); import modeling_heddle as m; "
      "bad = [d for d in map(pathlib.Path, sys.argv[1:]) if not "
      "m.check_logits(m.HeddleForCausalLM.from_pretrained(d), d, 1e-4)]; print(*bad); sys.exit(len(bad) > 0)";
  EXPECT_EQ(std::system(("python3 -B -c '" + program + "'" + folders).c_str()), 0);
}

}  // namespace
}  // namespace heddle
