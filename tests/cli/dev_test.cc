// ./dev as a program: an argument that it does not know is an error, before anything is done.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

TEST(DevTest, WhatItDoesNotKnowIsAnError) {
  const testing::TempFolder folder;
  const std::string err = (folder / "err").string();
  for (const auto& [arguments, said] : {std::pair{"format --chek", "dev: format: unknown argument '--chek'\n"},
                                        std::pair{"format --check x", "dev: format: unknown argument 'x'\n"},
                                        std::pair{"setup --co", "dev: setup: unknown argument '--co'\n"},
                                        std::pair{"package x", "dev: package: unknown argument 'x'\n"},
                                        std::pair{"fuzz x", "dev: fuzz: found 'x', expected a number of seconds\n"},
                                        std::pair{"nope", "dev: unknown command 'nope'\n"}}) {
    const std::string command = std::string("'" HEDDLE_SOURCE_DIR "/dev' ") + arguments + " 2> '" + err + "'";
    EXPECT_NE(std::system(command.c_str()), 0) << arguments;
    EXPECT_THAT(read_file(err), ::testing::EndsWith(said));
  }
}

}  // namespace
}  // namespace heddle
