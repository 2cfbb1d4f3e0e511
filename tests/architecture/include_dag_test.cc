#include "include_dag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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
  EXPECT_THAT(folders.at("core/runtime"), IsEmpty());
  for (const char* folder : {"core/tensor", "core/config"}) {
    EXPECT_THAT(folders.at(folder), ElementsAre("core/runtime")) << folder;
  }
  for (const char* folder : {"core/autograd", "core/io", "kernels/common"}) {
    EXPECT_THAT(folders.at(folder), ElementsAre("core/runtime", "core/tensor")) << folder;
  }
}

// A family of kernels knows what all kernels share, and no other family.
TEST(IncludeDag, FamiliesOfKernelsKnowOnlyWhatIsCommon) {
  int families = 0;
  const IncludeDag dag = dag_of_the_build();
  for (const auto& [folder, below] : dag.folders()) {
    if (!folder.starts_with("kernels/") || folder == "kernels/common") continue;
    EXPECT_THAT(below, ElementsAre("core/runtime", "core/tensor", "kernels/common")) << folder;
    ++families;
  }
  EXPECT_EQ(families, std::distance(std::filesystem::directory_iterator(HEDDLE_SOURCE_DIR "/kernels"), {}) - 1);
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

// A source in a folder that no library has would be compiled by nobody.
TEST(IncludeDag, EverySourceBelongsToALibrary) {
  const IncludeDag dag = dag_of_the_build();
  const std::filesystem::path root = HEDDLE_SOURCE_DIR;
  for (const char* top : {"core", "kernels", "layers", "trainers", "tools", "cli"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file()) continue;
      const std::string path = entry.path().lexically_relative(root);
      EXPECT_NE(dag.folder_of(path), "") << path << ": add a heddle_library() for its folder to CMakeLists.txt";
    }
  }
}

TEST(IncludeDag, CatchesAnArrowThatRunsUp) {
  const IncludeDag dag = dag_of_the_build();
  EXPECT_THAT(dag.violations("core/tensor/tensor.h", include("core/autograd/tape.h")),
              ElementsAre("core/tensor/tensor.h:2: core/autograd/tape.h runs up the include DAG: "
                          "core/tensor may include from core/runtime"));
  const std::pair<const char*, const char*> upwards[] = {
      {"core/runtime/context.h", "core/tensor/tensor.h"},
      {"core/config/config_node.h", "core/tensor/dtype.h"},
      {"kernels/norm/norm.h", "core/autograd/tape.h"},
      {"kernels/norm/norm.h", "kernels/dense/gemm.h"},
      {"kernels/norm/cpu/norm.cc", "layers/ops/norm.h"},
      {"layers/ops/norm.cc", "layers/modules/norm.h"},
      {"layers/ops/norm.cc", "core/config/config_node.h"},
      {"layers/modules/norm.cc", "layers/registry.h"},
      {"layers/registry.cc", "trainers/train_step.h"},
      {"trainers/trainer.cc", "tools/benchmark.h"},
      {"tools/benchmark.cc", "cli/command.h"},
      {"layers/modules/norm.cc", "layers/operators/operators.h"},
  };
  for (const auto& [path, header] : upwards) {
    EXPECT_THAT(dag.violations(path, include(header)), ElementsAre(HasSubstr("runs up"))) << path << " " << header;
  }
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", include("core/tensor/tensor.h") + include("kernels/norm/norm.h")),
              IsEmpty());
  EXPECT_THAT(dag.violations("layers/operators/norm.cc", include("layers/modules/norm.h")), IsEmpty());
  EXPECT_THAT(dag.violations("cli/train.cc", include("core/config/config_node.h")), IsEmpty());
}

TEST(IncludeDag, CatchesPathsThatAreNotFromTheRoot) {
  const IncludeDag dag = dag_of_the_build();
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", include("norm.h")),
              ElementsAre(HasSubstr("not a path from the root")));
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", include("tests/op_cases.h")),
              ElementsAre(HasSubstr("not a path from the root")));
}

TEST(IncludeDag, ExamplesIncludeAsUsersDo) {
  const IncludeDag dag = dag_of_the_build();
  EXPECT_THAT(dag.violations("examples/norm.cc", include("heddle/layers/ops/norm.h")), IsEmpty());
  EXPECT_THAT(dag.violations("examples/norm.cc", include("layers/ops/norm.h")),
              ElementsAre(HasSubstr("is not written as heddle/...")));
  EXPECT_THAT(dag.violations("examples/project/norm.cu", include("norm.h")), IsEmpty());
  EXPECT_THAT(dag.violations("examples/project/norm.cu", include("layers/ops/norm.h")),
              ElementsAre(HasSubstr("is not written as heddle/...")));
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", include("heddle/layers/ops/norm.h")),
              ElementsAre(HasSubstr("not a path from the root")));
}

TEST(IncludeDag, CatchesPrivateHeaders) {
  const IncludeDag dag = dag_of_the_build();
  const std::string parallel = include("kernels/common/cpu/parallel.h"), rows = include("kernels/norm/cuda/norm.h");
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", parallel), ElementsAre(HasSubstr("is private to kernels/common")));
  EXPECT_THAT(dag.violations("examples/norm.cc", include("heddle/kernels/common/cpu/parallel.h")),
              ElementsAre(HasSubstr("is private to kernels/common")));
  EXPECT_THAT(dag.violations("kernels/norm/cuda/norm.h", parallel), ElementsAre(HasSubstr("is private to")));
  EXPECT_THAT(dag.violations("kernels/norm/cpu/norm.cc", parallel), IsEmpty());
  EXPECT_THAT(dag.violations("layers/ops/norm.cc", rows), ElementsAre(HasSubstr("is private to kernels/norm")));
  EXPECT_THAT(dag.violations("kernels/norm/cuda/norm_forward.cu", rows), IsEmpty());
}

TEST(IncludeDag, CatchesCudaHeadersOutsideTheirPlace) {
  const IncludeDag dag = dag_of_the_build();
  for (const char* header : {"cuda_runtime.h", "cublasLt.h", "cuda_bf16.h", "cub/cub.cuh", "cuda/std/array"}) {
    const std::string text = std::string("#include <") + header + ">\n";
    EXPECT_THAT(dag.violations("core/tensor/tensor.h", text), ElementsAre(HasSubstr("CUDA headers belong"))) << header;
    EXPECT_THAT(dag.violations("kernels/norm/norm.h", text), ElementsAre(HasSubstr("CUDA headers belong"))) << header;
    EXPECT_THAT(dag.violations("kernels/norm/cuda/norm.cu", text), IsEmpty()) << header;
    EXPECT_THAT(dag.violations("core/runtime/cuda_device.cc", text), IsEmpty()) << header;
  }
}

}  // namespace
