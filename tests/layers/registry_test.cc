// The registry: what it refuses, and what holds for every operator in it.
#include "layers/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "tests/architecture/docs_sections.h"
#include "tests/error_of.h"

namespace heddle::test::registry_test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

OperatorFunction make_nothing(const ConfigNode&) {
  return [](Tape&, const NamedVariables& inputs) { return inputs; };
}

std::vector<OperatorCase> no_cases() { return {}; }

Operator identity() {
  return {.name = "identity", .inputs = {{.name = "x"}}, .outputs = {"x"}, .make = make_nothing, .cases = no_cases};
}

TEST(Registry, RefusesRowsThatLackSomething) {
  Registry registry;
  Operator row = identity();
  row.cases = nullptr;
  EXPECT_EQ(testing::error_of([&] { registry.add(row); }),
            "operator identity has no cases to be checked by: write them in layers/operators/identity.cc");
  row = identity();
  row.make = nullptr;
  EXPECT_THAT(testing::error_of([&] { registry.add(row); }), HasSubstr("set Operator::make"));
  row = identity();
  row.inputs.clear();
  EXPECT_THAT(testing::error_of([&] { registry.add(row); }), HasSubstr("set Operator::inputs"));
  row = identity();
  row.outputs.clear();
  EXPECT_THAT(testing::error_of([&] { registry.add(row); }), HasSubstr("set Operator::outputs"));
  EXPECT_TRUE(registry.operators().empty());
}

TEST(Registry, RefusesANameThatIsTaken) {
  Registry registry = built_in_registry();
  registry.add(identity());
  EXPECT_EQ(testing::error_of([&] { registry.add(identity()); }), "two operators are called identity");
  EXPECT_THAT(testing::error_of([&] { registry.add_mixer("lightning", [] { return nullptr; }); }),
              HasSubstr("lightning"));
  EXPECT_THAT(testing::error_of([&] { registry.add_channel("glu", [] { return nullptr; }); }), HasSubstr("glu"));
}

// What a program adds is in its copy only.
TEST(Registry, IsAValue) {
  Registry registry = built_in_registry();
  registry.add(identity());
  EXPECT_EQ(registry.find("identity").name, "identity");
  EXPECT_EQ(registry.operators().size(), built_in_registry().operators().size() + 1);
  EXPECT_THROW(built_in_registry().find("identity"), Error);
}

// With options of a case, so that those that are required are there.
TEST(Registry, EveryOperatorRefusesAnOptionItDoesNotKnow) {
  for (const Operator& op : built_in_registry().operators()) {
    std::string options = op.cases().front().options;
    EXPECT_NO_THROW(bind_operator(op, parse_config(options))) << op.name << " " << options;
    ASSERT_EQ(options.front(), '{') << op.name;
    options.insert(1, options == "{}" ? "no_such_option: 1" : "no_such_option: 1, ");
    EXPECT_THAT(testing::error_of([&] { bind_operator(op, parse_config(options)); }),
                AllOf(HasSubstr(":1:2: "), HasSubstr("unknown key 'no_such_option'")))
        << op.name << ": layers/operators swallows an option";
  }
}

TEST(Registry, EveryOperatorHasASectionInTheDocs) {
  std::ostringstream page;
  page << std::ifstream(HEDDLE_SOURCE_DIR "/docs/layers.md").rdbuf();
  for (const std::string& name : built_in_registry().operator_names()) {
    EXPECT_TRUE(documents_operator(page.str(), name))
        << "docs/layers.md: write a section that starts with `" << name << "`";
  }
}

}  // namespace
}  // namespace heddle::test::registry_test
