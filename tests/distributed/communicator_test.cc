// What holds for every communicator, for that of one process and for the pretended one. MPI's is tested by
// tests/distributed/mpi_program.cc under mpirun.
#include "core/distributed/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/distributed/unconnected.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "tests/distributed/check_communicator.h"
#include "tests/distributed/threads.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(CommunicatorTest, OneProcessKeepsWhatItHas) {
  Context context(Device{}, {.threads = 1});
  testing::check_communicator(context, *make_communicator({}, context));
}

TEST(CommunicatorThreaded, CollectiveCallsOfThreads) {
  for (const int count : {1, 2, 3, 5}) {
    const std::vector<std::string> errors = testing::run_together(count, [](Communicator& communicator) {
      Context context(Device{}, {.threads = 1});
      testing::check_communicator(context, communicator);
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
  }
}

TEST(CommunicatorThreaded, OneThatEndsTakesTheOthersAlong) {
  const std::vector<std::string> errors = testing::run_together(3, [](Communicator& communicator) {
    if (communicator.rank() == 1) fail("no more");
    communicator.barrier();
  });
  EXPECT_THAT(errors, ElementsAre("aborted: process 1: no more", "no more", "aborted: process 1: no more"));
}

TEST(CommunicatorTest, PretendedOnesAnswerForAll) {
  const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, 4);
  EXPECT_EQ(communicator->size(), 4);
  EXPECT_THAT(communicator->all_gather_bytes("a"), ElementsAre("a", "a", "a", "a"));
  EXPECT_THROW(make_pretended_communicator(4, 4), Error);
}

TEST(CommunicatorTest, BoundsAreAsEqualAsTheyCanBe) {
  EXPECT_THAT(equal_bounds(7, 3), ElementsAre(0, 3, 5, 7));
  EXPECT_THAT(equal_bounds(1, 3), ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(equal_bounds(0, 2), ElementsAre(0, 0, 0));
}

}  // namespace
}  // namespace heddle
