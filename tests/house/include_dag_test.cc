#include "include_dag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

IncludeDag dag_of_the_build() {
  std::ifstream lines(HEDDLE_INCLUDE_DAG);
  return IncludeDag(lines);
}

std::string include(const std::string& header) { return "#pragma once\n#include \"" + header + "\"\n"; }

TEST(IncludeDag, NoFolderIsBelowItself) {
  const IncludeDag dag = dag_of_the_build();
  for (const auto& [folder, below] : dag.folders()) EXPECT_FALSE(below.contains(folder)) << folder;
}

TEST(IncludeDag, TheFoundationsStandAlone) {
  const auto folders = dag_of_the_build().folders();
  EXPECT_THAT(folders.at("core/tensor"), IsEmpty());
  for (const char* folder : {"core/autograd", "core/config", "core/io", "kernels"}) {
    EXPECT_THAT(folders.at(folder), ElementsAre("core/tensor")) << folder;
  }
}

TEST(IncludeDag, EverySourceKeepsToIt) {
  const IncludeDag dag = dag_of_the_build();
  const std::filesystem::path root = HEDDLE_SOURCE_DIR;
  int sources = 0;
  for (const auto& [folder, below] : dag.folders()) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".cu" && extension != ".cuh") continue;
      std::ostringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      for (const std::string& message : dag.violations(entry.path().lexically_relative(root), text.str())) {
        ADD_FAILURE() << message;
      }
      ++sources;
    }
  }
  EXPECT_GT(sources, 0);
}

TEST(IncludeDag, CatchesAnArrowThatRunsUp) {
  const IncludeDag dag = dag_of_the_build();
  EXPECT_THAT(dag.violations("core/tensor/tensor.h", include("core/autograd/tape.h")),
              ElementsAre("core/tensor/tensor.h:2: core/autograd/tape.h runs up the include DAG: "
                          "core/tensor may include from nothing"));
  EXPECT_THAT(dag.violations("kernels/norm.h", include("core/autograd/tape.h")), ElementsAre(HasSubstr("runs up")));
  EXPECT_THAT(dag.violations("kernels/cpu/norm.cc", include("layers/norm.h")), ElementsAre(HasSubstr("runs up")));
  EXPECT_THAT(dag.violations("layers/norm.cc", include("trainers/model.h")), ElementsAre(HasSubstr("runs up")));
  EXPECT_THAT(dag.violations("trainers/model.cc", include("cli/train.h")), ElementsAre(HasSubstr("runs up")));
  EXPECT_THAT(dag.violations("layers/norm.cc", include("core/tensor/tensor.h") + include("kernels/norm.h")), IsEmpty());
  EXPECT_THAT(dag.violations("cli/train.cc", include("core/config/config.h")), IsEmpty());
}

TEST(IncludeDag, CatchesPathsThatAreNotFromTheRoot) {
  const IncludeDag dag = dag_of_the_build();
  EXPECT_THAT(dag.violations("layers/norm.cc", include("norm.h")), ElementsAre(HasSubstr("not a path from the root")));
  EXPECT_THAT(dag.violations("layers/norm.cc", include("tests/op_cases.h")),
              ElementsAre(HasSubstr("not a path from the root")));
}

TEST(IncludeDag, CatchesPrivateHeaders) {
  const IncludeDag dag = dag_of_the_build();
  const std::string parallel = include("kernels/cpu/detail/parallel.h");
  EXPECT_THAT(dag.violations("layers/norm.cc", parallel), ElementsAre(HasSubstr("is private to kernels")));
  EXPECT_THAT(dag.violations("examples/norm.cc", parallel), ElementsAre(HasSubstr("is private to kernels")));
  EXPECT_THAT(dag.violations("kernels/cpu/norm.cc", parallel), IsEmpty());
}

TEST(IncludeDag, CatchesCudaHeadersOutsideTheirPlace) {
  const IncludeDag dag = dag_of_the_build();
  for (const char* header : {"cuda_runtime.h", "cublasLt.h", "cuda_bf16.h", "cub/cub.cuh", "cuda/std/array"}) {
    const std::string text = std::string("#include <") + header + ">\n";
    EXPECT_THAT(dag.violations("core/tensor/tensor.h", text), ElementsAre(HasSubstr("CUDA headers belong"))) << header;
    EXPECT_THAT(dag.violations("kernels/norm.h", text), ElementsAre(HasSubstr("CUDA headers belong"))) << header;
    EXPECT_THAT(dag.violations("kernels/cuda/norm.cu", text), IsEmpty()) << header;
    EXPECT_THAT(dag.violations("core/tensor/cuda_device.cc", text), IsEmpty()) << header;
  }
}

}  // namespace
