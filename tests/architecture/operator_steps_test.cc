// Who forgets a step of adding an operator is told which file to edit. The operator is softcap, whose files are in
// tests/architecture/softcap.
#include "operator_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const std::string kKernels = "kernels/dense/softcap.h";
const std::string kCpuKernels = "kernels/dense/cpu/softcap.cc";
const std::string kOp = "layers/ops/softcap.h";
const std::string kOpSource = "layers/ops/softcap.cc";
const std::string kRow = "layers/operators/softcap.cc";

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

const SourceTree& repository() {
  static const SourceTree tree = read_source_tree(HEDDLE_SOURCE_DIR);
  return tree;
}

// The repository with softcap, the file or the lines of `forgotten` left out.
SourceTree with_softcap(const std::vector<std::string>& forgotten = {}) {
  SourceTree tree = repository();
  const auto is_forgotten = [&](const std::string& path) {
    return std::find(forgotten.begin(), forgotten.end(), path) != forgotten.end();
  };
  for (const std::string& path : {kKernels, kCpuKernels, kOp, kOpSource, kRow}) {
    if (!is_forgotten(path)) tree[path] = read(HEDDLE_SOURCE_DIR "/tests/architecture/softcap/" + path);
  }
  if (!is_forgotten(kDocs)) tree[kDocs] += "\n" + read(HEDDLE_SOURCE_DIR "/tests/architecture/softcap/" + kDocs);
  const std::string declaration = "Operator activation_operator();\n",
                    call = "  registry.add(activation_operator());\n";
  if (!is_forgotten(kRows)) replace(tree[kRows], declaration, declaration + "Operator softcap_operator();\n");
  if (!is_forgotten(kRegistry)) replace(tree[kRegistry], call, call + "  registry.add(softcap_operator());\n");
  return tree;
}

TEST(OperatorSteps, NoneIsForgottenInTheRepository) { EXPECT_THAT(forgotten_steps(repository()), IsEmpty()); }

// What is forgotten in the repository itself would be reported here once more.
class SoftcapSteps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!forgotten_steps(repository()).empty()) GTEST_SKIP() << "see OperatorSteps.NoneIsForgottenInTheRepository";
  }
};

TEST_F(SoftcapSteps, NoneIsForgottenWhenAllAreTaken) { EXPECT_THAT(forgotten_steps(with_softcap()), IsEmpty()); }

TEST_F(SoftcapSteps, EachForgottenStepIsOneMessageThatNamesTheFile) {
  const std::pair<std::string, std::string> steps[] = {
      {kKernels, "does not exist"},
      {kCpuKernels, "define softcap_forward, softcap_backward, which kernels/dense/softcap.h declares"},
      {kOp, "does not exist"},
      {kOpSource, "define softcap(), which layers/ops/softcap.h declares"},
      {kRow, "no operator is made of layers/ops/softcap.h"},
      {kRows, "declare softcap_operator(), which layers/operators/softcap.cc defines"},
      {kRegistry, "add softcap_operator()"},
      {kDocs, "write a section that starts with `softcap`"},
  };
  for (const auto& [file, reason] : steps) {
    EXPECT_THAT(forgotten_steps(with_softcap({file})), ElementsAre(AllOf(StartsWith(file + ": "), HasSubstr(reason))))
        << file;
  }
}

// Who takes the steps in order is led from one to the next. The section of docs/layers.md that the sources cite is
// missing from the start.
TEST_F(SoftcapSteps, EachStepLeadsToTheNext) {
  std::vector<std::string> missing = {kCpuKernels, kOp, kOpSource, kRow, kRows, kRegistry};
  const auto expect = [&](const std::vector<std::string>& files) {
    std::vector<::testing::Matcher<std::string>> messages;
    for (const std::string& file : files) messages.push_back(StartsWith(file + ": "));
    EXPECT_THAT(forgotten_steps(with_softcap(missing)), ::testing::ElementsAreArray(messages));
    if (!missing.empty()) missing.erase(missing.begin());
  };
  expect({kCpuKernels, kOp});
  expect({kOp});
  expect({kRow, kOpSource});  // in the order of their names
  expect({kRow});
  expect({kRows, kRegistry});
  expect({kRegistry});
  expect({});
}

TEST_F(SoftcapSteps, AKernelOfOneDeviceIsDeclaredAsSuch) {
  SourceTree tree = with_softcap();
  for (int i = 0; i < 2; ++i) replace(tree[kKernels], "HEDDLE_CPU_KERNEL", "HEDDLE_KERNEL");
  EXPECT_THAT(forgotten_steps(tree),
              ElementsAre("kernels/dense/cuda/softcap.cu: define softcap_forward, softcap_backward, which "
                          "kernels/dense/softcap.h declares; a kernel of the CPU only is declared by "
                          "HEDDLE_CPU_KERNEL"));
  for (int i = 0; i < 2; ++i) replace(tree[kKernels], "HEDDLE_KERNEL", "HEDDLE_CUDA_KERNEL");
  EXPECT_THAT(forgotten_steps(tree), ElementsAre(HasSubstr("kernels/dense/cuda/softcap.cu: define softcap_forward")));
}

TEST_F(SoftcapSteps, ADeclarationOrACommentIsNoDefinition) {
  SourceTree tree = with_softcap({kCpuKernels});
  tree[kCpuKernels] =
      "namespace heddle::kernels::cpu {\n"
      "void softcap_forward(Context& context, const SoftcapForwardArgs& args);\n"
      "// void softcap_backward(Context& context, const SoftcapBackwardArgs& args) {}\n"
      "}\n";
  EXPECT_THAT(forgotten_steps(tree),
              ElementsAre(HasSubstr(kCpuKernels + ": define softcap_forward, softcap_backward")));
}

// The list of operators at the head of the page is no section.
TEST_F(SoftcapSteps, ANameInPassingIsNoSection) {
  SourceTree tree = with_softcap();
  replace(tree[kDocs], "`softcap`: `y", "See `softcap`: `y");
  EXPECT_THAT(forgotten_steps(tree),
              ElementsAre(HasSubstr("docs/layers.md: write a section that starts with `softcap`")));
}

TEST_F(SoftcapSteps, AnAnchorThatIsCitedExists) {
  SourceTree tree = repository();
  replace(tree["layers/ops/norm.h"], "docs/layers.md#normalization", "docs/layers.md#norms");
  EXPECT_THAT(forgotten_steps(tree), ElementsAre("docs/layers.md: no heading has the anchor #norms, which "
                                                 "layers/ops/norm.h cites"));
}

// The checks read the repository's sources as they are written: each of these removes what is there.
TEST(OperatorSteps, WhatTheRepositoryHasIsSeen) {
  const std::pair<std::string, std::string> removed[] = {
      {"kernels/norm/cpu/norm_backward.cc", "define norm_backward"},
      {"kernels/position/cuda/lrpe_rotate.cu", "define lrpe_rotate_forward"},
      {"kernels/optimizer/cuda/optimizer.cu", "define "},
      {"layers/ops/linear_attention.cc", "define linear_attention()"},
      {"layers/operators/lrpe_cosine.cc", "define lrpe_cosine_operator(), which"},
      {"layers/operators/norm.cc", "no operator is made of layers/ops/norm.h"},
      {"layers/ops/embedding.h", "does not exist"},
  };
  for (const auto& [file, reason] : removed) {
    SourceTree tree = repository();
    ASSERT_EQ(tree.erase(file), 1u) << file;
    EXPECT_THAT(forgotten_steps(tree), ::testing::Contains(HasSubstr(reason))) << file;
  }
}

}  // namespace
