// The device itself: opening it, copies, streams, events, pinned memory, what the allocator does on it.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/runtime/stream.h"
#include "tests/cuda/gpu_test.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;

class DeviceGpu : public GpuTest {};
class AllocatorGpu : public GpuTest {};

TEST_F(DeviceGpu, KnowsItself) {
  Context context({DeviceType::cuda, 0});
  const DeviceProperties& properties = context.properties();
  EXPECT_EQ(context.device(), (Device{DeviceType::cuda, 0}));
  EXPECT_FALSE(properties.name.empty());
  EXPECT_GT(properties.multiprocessors, 0);
  EXPECT_GE(properties.compute_capability, 70);
  EXPECT_GT(properties.memory_bytes, size_t{1} << 30);
  EXPECT_GT(properties.l2_bytes, size_t{1} << 20);
  EXPECT_GE(properties.shared_bytes_per_block, size_t{48} << 10);
}

TEST_F(DeviceGpu, AutoIsTheFirstGpu) { EXPECT_EQ(resolve_device("auto"), (Device{DeviceType::cuda, 0})); }

TEST_F(DeviceGpu, SaysWhichGpusThereAre) {
  try {
    Context context({DeviceType::cuda, 99});
    FAIL() << "cuda:99 opened";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("device cuda:99 is not available: the GPUs of this process are cuda:0 to"));
  }
}

TEST_F(DeviceGpu, EveryGpuComputes) {
  for (int index = 0; index < cuda_device_count(); ++index) {
    Context context({DeviceType::cuda, index});
    const Tensor tensor = Tensor::empty(context, {1000}, DType::float32);
    fill_zero(context, tensor);
    EXPECT_EQ(read_values(context, tensor), std::vector<double>(1000, 0.0));
  }
}

TEST_F(DeviceGpu, BringsBackWhatItWasGiven) {
  Context context({DeviceType::cuda, 0});
  Random random(1, RandomStream::test);
  for (const DType dtype : kFloating) {
    const std::vector<double> values = exact_values(3 * 17, random);
    const Tensor tensor = placed(context, 3, 17, dtype, {.gap = 5, .shift = 1});
    write_values(context, tensor, values);
    EXPECT_EQ(read_values(context, tensor), values);
    EXPECT_EQ(read_values(context, clone(context, tensor)), values);
  }
}

TEST_F(DeviceGpu, PinnedMemoryIsCopiedInOrder) {
  Context context({DeviceType::cuda, 0});
  const int64_t count = 1 << 20;
  PinnedBuffer from(context, count * sizeof(float)), to(context, count * sizeof(float));
  const Tensor tensor = Tensor::empty(context, {count}, DType::float32);
  Event copied(context);
  for (int round = 0; round < 3; ++round) {
    std::fill_n(from.as<float>(), count, static_cast<float>(round));
    copy_from_host(context, tensor, from.data());
    copy_to_host_async(context, tensor, to.data());
    copied.record(context.stream());
    copied.synchronize();
    EXPECT_TRUE(copied.done());
    EXPECT_EQ(std::count(to.as<float>(), to.as<float>() + count, static_cast<float>(round)), count);
  }
}

// A copy to the host is done when it returns, also to pinned memory and behind work that takes a while.
TEST_F(DeviceGpu, ACopyToTheHostIsAwaited) {
  Context context({DeviceType::cuda, 0});
  const int64_t count = 1 << 26;
  PinnedBuffer to(context, count * sizeof(float));
  const Tensor tensor = Tensor::empty(context, {count}, DType::float32),
               other = Tensor::empty(context, {count}, DType::float32);
  fill_zero(context, tensor);
  write_values(context, tensor.slice(0, count - 1, count), {5.0});
  std::fill_n(to.as<float>(), count, -1.0f);
  context.synchronize();
  for (int i = 0; i < 10; ++i) copy(context, other, tensor);
  copy_to_host(context, other, to.data());
  EXPECT_EQ(to.as<float>()[count - 1], 5.0f);
}

TEST_F(DeviceGpu, EventsOrderStreamsAndTellTheTime) {
  Context context({DeviceType::cuda, 0});
  Stream second(context);
  const Tensor tensor = Tensor::empty(context, {1 << 26}, DType::float32);
  Event begin(context), end(context);
  begin.record(context.stream());
  for (int i = 0; i < 10; ++i) fill_zero(context, tensor);
  poison(context, tensor);
  end.record(context.stream());
  end.block(second.handle());
  context.backend().fill_bytes(tensor.raw(), 0, static_cast<size_t>(tensor.numel()) * 4, second.handle());
  second.synchronize();
  EXPECT_GT(begin.milliseconds_to(end), 0.0);
  EXPECT_EQ(read_values(context, tensor.slice(0, 0, 8)), std::vector<double>(8, 0.0));
}

// A block that another stream still writes is not handed out again before that stream is done.
TEST_F(AllocatorGpu, WaitsForOtherStreamsBeforeReuse) {
  Context context({DeviceType::cuda, 0});
  CachingAllocator& allocator = context.allocator();
  Stream other(context);
  const size_t bytes = size_t{1} << 30;
  auto* block = allocator.allocate(bytes, context.stream(), {});
  void* const address = CachingAllocator::data(block);
  for (int i = 0; i < 200; ++i) context.backend().fill_bytes(address, i, bytes, other.handle());
  allocator.record_use(block, other.handle());
  allocator.free(block);
  auto* second = allocator.allocate(bytes, context.stream(), {});
  EXPECT_NE(CachingAllocator::data(second), address);
  other.synchronize();
  auto* third = allocator.allocate(bytes, context.stream(), {});
  EXPECT_EQ(CachingAllocator::data(third), address);
  allocator.free(second);
  allocator.free(third);
}

TEST_F(AllocatorGpu, FreesTheCacheThenSaysWhatIsHeld) {
  Context context({DeviceType::cuda, 0});
  const auto memory = static_cast<int64_t>(context.properties().memory_bytes);
  // Two that fit only one after the other, when the cache is given back between them.
  EXPECT_TRUE(Tensor::empty(context, {memory / 32 * 9}, DType::bfloat16).defined());
  EXPECT_TRUE(Tensor::empty(context, {memory / 16 * 5}, DType::float16).defined());
  EXPECT_EQ(context.allocator().stats().retries, 1);
  try {
    const Tensor more = Tensor::empty(context, {memory}, DType::float32);
    FAIL() << "more memory than the device has";
  } catch (const OutOfMemory& error) {
    EXPECT_THAT(error.what(), HasSubstr("out of memory on cuda:0: asked"));
  }
  const Tensor usable = Tensor::zeros(context, {1000}, DType::float32);
  EXPECT_EQ(read_values(context, usable), std::vector<double>(1000, 0.0));
}

// The same requests give the same counts on cpu, meta and cuda.
TEST_F(AllocatorGpu, CountsWhatMetaCounts) {
  const auto run = [](Device device) {
    Context context(device);
    Random random(3, RandomStream::test);
    std::vector<Tensor> alive;
    for (int i = 0; i < 2000; ++i) {
      if (!alive.empty() && random.next_below(2) == 0) {
        alive.erase(alive.begin() + static_cast<int64_t>(random.next_below(alive.size())));
      } else {
        alive.push_back(Tensor::empty(context, {static_cast<int64_t>(random.next_below(1 << 18))}, DType::bfloat16));
      }
    }
    const MemoryStats stats = context.allocator().stats();
    return std::vector<size_t>{stats.allocated.current, stats.allocated.peak, static_cast<size_t>(stats.allocations)};
  };
  const auto on_gpu = run({DeviceType::cuda, 0});
  EXPECT_EQ(on_gpu, run({DeviceType::meta}));
  EXPECT_EQ(on_gpu, run({DeviceType::cpu}));
}

}  // namespace
}  // namespace heddle
