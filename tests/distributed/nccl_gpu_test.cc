// NCCL between the GPUs of this host, a process for each.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/distributed/communicator.h"
#include "core/distributed/socket.h"
#include "core/runtime/context.h"
#include "core/runtime/graph.h"
#include "core/tensor/transfer.h"
#include "tests/distributed/check_communicator.h"
#include "tests/distributed/launch_of.h"
#include "tests/distributed/own_processes.h"

namespace heddle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using Body = std::function<void(Context&, Communicator&)>;
using Processes = std::vector<std::unique_ptr<testing::OwnProcess>>;

// At most 4. CUDA is not to be used before the processes are started: it is asked in one of its own.
int gpus() {
  testing::OwnProcess counter([] { std::fprintf(stderr, "%d", std::min(cuda_device_count(), 4)); });
  return counter.wait_for(seconds(60)) ? std::stoi(counter.err()) : 0;
}

Processes start(int count, const Body& body) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  Processes processes;
  for (int rank = 0; rank < count; ++rank) {
    processes.push_back(std::make_unique<testing::OwnProcess>([=] {
      Context context({DeviceType::cuda, rank});
      const auto communicator = make_communicator(testing::launch_of(rank, count, port), context);
      body(context, *communicator);
    }));
  }
  return processes;
}

void expect_all_well(const Processes& processes) {
  for (const auto& process : processes) {
    ASSERT_TRUE(process->wait_for(seconds(120)));
    EXPECT_EQ(process->code(), 0) << process->err();
  }
}

class NcclGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    count_ = gpus();
    if (count_ < 2) GTEST_SKIP() << "needs two GPUs";
  }
  int count_ = 0;
};

TEST_F(NcclGpu, CollectiveCalls) {
  expect_all_well(start(count_, [](Context& context, Communicator& communicator) {
    testing::check_communicator(context, communicator);
  }));
}

// 16 bits are summed by nobody yet, but NCCL can; and every dtype is moved as it is.
TEST_F(NcclGpu, SumsOfBfloat16) {
  expect_all_well(start(count_, [](Context& context, Communicator& communicator) {
    const Tensor values = Tensor::empty(context, {1000}, DType::bfloat16);
    write_values(context, values, std::vector<double>(1000, communicator.rank() + 1.0));
    communicator.all_reduce(values, context.stream());
    const int n = communicator.size();
    check(read_values(context, values)[999] == n * (n + 1) / 2, "a sum of bfloat16");
  }));
}

TEST_F(NcclGpu, ReplaysOfAGraphGiveTheSameBits) {
  expect_all_well(start(count_, [](Context& context, Communicator& communicator) {
    check(communicator.can_be_captured(), "can_be_captured");
    const int64_t extent = 100003;
    const std::vector<int64_t> even = equal_bounds(extent - extent % communicator.size(), communicator.size());
    const std::vector<int64_t> uneven = equal_bounds(extent, communicator.size());
    const Tensor start = Tensor::empty(context, {extent}, DType::float32), values = clone(context, start);
    std::vector<double> numbers;
    for (int64_t i = 0; i < extent; ++i) numbers.push_back(testing::contribution(communicator.rank(), i));
    write_values(context, start, numbers);
    const auto work = [&] {
      copy(context, values, start);
      communicator.all_reduce(values, context.stream());
      communicator.reduce_scatter(values, uneven, context.stream());
      communicator.all_gather(values, uneven, context.stream());
      const Tensor part = values.slice(0, 0, even.back());
      communicator.reduce_scatter(part, even, context.stream());
      communicator.all_gather(part, even, context.stream());
      communicator.broadcast(values, 1, context.stream());
    };
    work();
    const std::vector<double> expected = read_values(context, values);
    Graph graph = capture(context, work);
    for (int i = 0; i < 10; ++i) {
      fill_zero(context, values);
      graph.replay();
      check(read_values(context, values) == expected, "replay {} has other bits", i);
    }
  }));
}

// The others are within a collective call that will never end.
TEST_F(NcclGpu, AKilledOneEndsTheOthers) {
  const Processes processes = start(count_, [](Context& context, Communicator& communicator) {
    const Tensor values = Tensor::zeros(context, {1 << 24}, DType::float32);
    communicator.barrier();
    std::fprintf(stderr, "met\n");
    std::fflush(stderr);
    while (true) {
      communicator.all_reduce(values, context.stream());
      context.synchronize();
    }
  });
  for (const auto& process : processes) {
    for (int i = 0; i < 6000 && process->err().find("met") == std::string::npos; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    ASSERT_THAT(process->err(), HasSubstr("met"));
  }
  std::this_thread::sleep_for(milliseconds(200));
  processes.back()->send(SIGKILL);
  for (size_t rank = 0; rank + 1 < processes.size(); ++rank) {
    ASSERT_TRUE(processes[rank]->wait_for(seconds(30)));
    EXPECT_EQ(processes[rank]->code(), 1);
    EXPECT_THAT(processes[rank]->err(), HasSubstr(fmt::format("error: rank {} on", processes.size() - 1)));
  }
}

TEST_F(NcclGpu, OneGpuForTwoIsNamed) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  Processes processes;
  for (int rank = 0; rank < 2; ++rank) {
    processes.push_back(std::make_unique<testing::OwnProcess>([=] {
      Launch launch;
      launch.kind = Launch::Kind::nccl;
      launch.rank = rank;
      launch.world_size = launch.local_size = 2;
      launch.master_addr = "127.0.0.1";
      launch.master_port = port;
      launch.token = "token";
      Context context({DeviceType::cuda, 0});
      make_communicator(launch, context);
    }));
  }
  for (const auto& process : processes) {
    ASSERT_TRUE(process->wait_for(seconds(60)));
    EXPECT_EQ(process->code(), 1);
    EXPECT_THAT(process->err(), HasSubstr("ranks 0 and 1 on " + host_name() + " both use the GPU "));
  }
}

}  // namespace
}  // namespace heddle
