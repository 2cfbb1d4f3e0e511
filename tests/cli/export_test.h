// Runs to export, and what `heddle train --init-from` makes of an export.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/cli/process.h"
#include "tests/cli/trained_test.h"

namespace heddle::testing {

// The overrides of --set as arguments.
inline void append(std::vector<std::string>& arguments, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides) arguments.insert(arguments.end(), {"--set", text});
}

class ExportTest : public TrainedTest {
 protected:
  Finished export_to(const std::string& out, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"export", run_, "--out", (folder_ / out).string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }
  // Takes a model whose documents are the lines of the text instead.
  void train_packed() {
    run_ = (folder_ / "packed").string();
    const Finished trained = train(run_, {"data={type: text, path: \"" + text_ + "\", pack: true, separator: 10}",
                                          "model.vocab_size=256", "trainer.sample={tokens: 5}"});
    ASSERT_EQ(trained.code, 0) << trained.err;
  }
  // Trains one step of the model of text from weights.
  Finished train_from(const std::string& weights, const std::string& run,
                      const std::vector<std::string>& overrides = {}) {
    std::vector<std::string> all = {"data={type: text, path: \"" + text_ + "\"}", "model.vocab_size=256"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return train_one_step(weights, run, all);
  }
  Finished train_one_step(const std::string& weights, const std::string& run,
                          const std::vector<std::string>& overrides) {
    std::vector<std::string> arguments = {"train",       (folder_ / "tiny.yaml").string(),
                                          "--out",       (folder_ / run).string(),
                                          "--init-from", (folder_ / weights).string(),
                                          "--device",    "cpu",
                                          "--threads",   "1",
                                          "--set",       "trainer.steps=1"};
    append(arguments, overrides);
    return run_heddle(arguments);
  }
  std::string weights_after(const std::string& run) {
    return read_file(folder_ / run / "checkpoints/step_1/model.safetensors");
  }
};

}  // namespace heddle::testing
