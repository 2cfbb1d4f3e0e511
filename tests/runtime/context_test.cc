#include "core/runtime/context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/tensor.h"
#include "core/tensor/transfer.h"
#include "tests/runtime/fake_backend.h"

namespace heddle {
namespace {

TEST(ContextTest, DevicesThatAreNotThereAreRefusedInOneLine) {
  try {
    Context context(Device{DeviceType::cuda, 4096});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("cuda:4096"));
    EXPECT_THAT(error.what(), ::testing::Not(::testing::HasSubstr("\n")));
  }
}

TEST(ContextTest, ThreadsAreAtLeastOne) {
  EXPECT_GE(Context().threads(), 1);
  EXPECT_EQ(Context(Device{}, {.threads = 3}).threads(), 3);
  EXPECT_THROW(Context(Device{}, {.threads = -1}), Error);
}

TEST(ContextTest, MoreThreadsThanAProcessCanHaveAreRefused) {
  EXPECT_EQ(Context(Device{}, {.threads = kMostThreads}).threads(), kMostThreads);
  try {
    Context(Device{}, {.threads = 100000});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("found 100000 threads for a context, expected 1 to 1024"));
  }
}

TEST(ContextTest, TwoContextsKnowNothingOfEachOther) {
  Context a, b;
  const MemoryScope scope(a, "only a", MemoryCategory::data);
  const Tensor in_a = Tensor::empty(a, {1000}, DType::float32);
  EXPECT_EQ(a.allocator().stats().allocated.current, 4096u);
  EXPECT_EQ(b.allocator().stats().allocations, 0);
  EXPECT_EQ(b.label().scope, 0u);
  const Tensor in_b = Tensor::empty(b, {1}, DType::float32);
  EXPECT_FALSE(in_a.shares_storage_with(in_b));
  EXPECT_EQ(a.allocator().stats().allocations, 1);
}

TEST(ContextTest, TensorsOutliveTheirContext) {
  Tensor survivor;
  {
    Context context;
    survivor = Tensor::zeros(context, {3}, DType::float32);
  }
  EXPECT_EQ(survivor.data<float>()[2], 0.0f);
  EXPECT_EQ(survivor.device(), (Device{DeviceType::cpu}));
}

TEST(ContextTest, ATensorReturnsToTheAllocatorItCameFrom) {
  Context a, b;
  Tensor tensor = Tensor::empty(a, {1}, DType::float32);
  tensor = Tensor::empty(b, {1}, DType::float32);
  EXPECT_EQ(a.allocator().stats().frees, 1);
  EXPECT_EQ(b.allocator().stats().frees, 0);
}

TEST(MemoryScopeTest, ScopesNestAndEnd) {
  Context context;
  const auto path = [&] { return context.allocator().scope_name(context.label().scope); };
  {
    const MemoryScope model(context, "blocks");
    const MemoryScope block(context, "3", MemoryCategory::activation);
    EXPECT_EQ(path(), "blocks.3");
    MemoryLabel kept;
    {
      const MemoryScope norm(context, "norm");
      const MemoryScope scratch(context, MemoryCategory::workspace);
      EXPECT_EQ(path(), "blocks.3.norm");
      EXPECT_EQ(context.label().category, MemoryCategory::workspace);
      kept = context.label();
    }
    EXPECT_EQ(path(), "blocks.3");
    EXPECT_EQ(context.label().category, MemoryCategory::activation);
    const MemoryScope again(context, kept);
    EXPECT_EQ(path(), "blocks.3.norm");
  }
  EXPECT_EQ(path(), "");
  EXPECT_EQ(context.label().category, MemoryCategory::other);
}

TEST(MemoryScopeTest, EndsWhenAnErrorFliesThrough) {
  Context context(std::make_unique<FakeBackend>(0));
  try {
    const MemoryScope scope(context, "layer");
    Tensor::empty(context, {1}, DType::float32);
    FAIL();
  } catch (const OutOfMemory&) {
  }
  EXPECT_EQ(context.label().scope, 0u);
}

// Tools that look on are told of layers and phases, not of categories within a layer.
TEST(MemoryScopeTest, RangesAreNamedForWhoLooksOn) {
  for (const bool is_watched : {true, false}) {
    auto owned = std::make_unique<FakeBackend>();
    FakeBackend& backend = *owned;
    backend.is_watched = is_watched;
    Context context(std::move(owned));
    context.mark("forward");
    {
      const MemoryScope layer(context, "layer", MemoryCategory::activation);
      const MemoryScope scratch(context, MemoryCategory::workspace);
      const MemoryScope norm(context, "norm");
    }
    const std::vector<std::string> expected = {"phase forward", "layer", "layer.norm", "layer", ""};
    EXPECT_EQ(backend.ranges, is_watched ? expected : std::vector<std::string>{});
  }
}

TEST(MemoryScopeTest, MemoryCountsForTheScopeItWasTakenIn) {
  Context context;
  Tensor tensor;
  {
    const MemoryScope scope(context, "layer", MemoryCategory::parameter);
    tensor = Tensor::empty(context, {128}, DType::float32);
  }
  const MemoryScope other(context, "other");
  EXPECT_EQ(context.allocator().scopes().at(0).scope, "layer");
  tensor = {};  // freed in another scope, but counted where it came from
  EXPECT_EQ(context.allocator().scopes().at(0).allocated.current, 0u);
  EXPECT_EQ(context.allocator().stats().by_category[static_cast<int>(MemoryCategory::parameter)].current, 0u);
}

// A program that allocates, views, copies and frees in an irregular pattern.
void program(Context& context) {
  Random random(1, RandomStream::test);
  std::vector<Tensor> tensors;
  for (int step = 0; step < 400; ++step) {
    const MemoryScope scope(context, fmt::format("layer {}", step % 7), static_cast<MemoryCategory>(step % 5));
    const auto rows = static_cast<int64_t>(1 + random.next_below(64));
    const auto columns = static_cast<int64_t>(random.next_below(64));
    tensors.push_back(Tensor::zeros(context, {rows, columns}, step % 2 == 0 ? DType::float32 : DType::bfloat16));
    if (random.next_below(4) == 0) tensors.back() = clone(context, tensors.back().transpose(0, 1));
    if (random.next_below(3) == 0) tensors.back() = tensors.back().slice(0, 0, 1);
    if (random.next_below(2) == 0) tensors.erase(tensors.begin() + static_cast<int>(random.next_below(tensors.size())));
  }
}

TEST(MetaTest, CountsAreThoseOfTheHostForTheSameProgram) {
  Context host, meta(Device{DeviceType::meta});
  EXPECT_TRUE(meta.is_meta());
  program(host);
  program(meta);
  const MemoryStats a = host.allocator().stats(), b = meta.allocator().stats();
  EXPECT_EQ(a.allocated.peak, b.allocated.peak);
  EXPECT_EQ(a.reserved.peak, b.reserved.peak);
  EXPECT_EQ(a.allocations, b.allocations);
  EXPECT_EQ(a.reuses, b.reuses);
  EXPECT_EQ(a.splits, b.splits);
  EXPECT_EQ(a.merges, b.merges);
  EXPECT_EQ(a.frees, b.frees);
  for (size_t i = 0; i < kMemoryCategories; ++i) EXPECT_EQ(a.by_category[i].peak, b.by_category[i].peak);
  const std::vector<ScopeBytes> of_host = host.allocator().scopes(), of_meta = meta.allocator().scopes();
  ASSERT_EQ(of_host.size(), of_meta.size());
  for (size_t i = 0; i < of_host.size(); ++i) {
    EXPECT_EQ(of_host[i].scope, of_meta[i].scope);
    EXPECT_EQ(of_host[i].allocated.peak, of_meta[i].allocated.peak);
    EXPECT_EQ(of_host[i].at_peak, of_meta[i].at_peak);
  }
}

TEST(MetaTest, HoldsMoreThanAnyMachine) {
  Context meta(Device{DeviceType::meta});
  std::vector<Tensor> tensors;
  for (int i = 0; i < 64; ++i) tensors.push_back(Tensor::zeros(meta, {1 << 20, 1 << 18}, DType::float32));
  EXPECT_EQ(meta.allocator().stats().allocated.current, size_t{1} << 46);
  EXPECT_FALSE(tensors[0].shares_storage_with(tensors[1]));
  EXPECT_NE(tensors[0].raw(), tensors[1].raw());
}

// Two contexts in two threads, and tensors of one handed to and freed by the other.
TEST(ContextThreaded, ContextsRunBesideEachOther) {
  Context a, b;
  const auto work = [](Context& context, std::vector<Tensor>& kept) {
    for (int i = 0; i < 500; ++i) {
      const MemoryScope scope(context, "work");
      const Tensor tensor = Tensor::zeros(context, {1 + i % 50}, DType::float32);
      if (i % 5 == 0) kept.push_back(tensor);
    }
  };
  std::vector<Tensor> of_a, of_b;
  std::thread first([&] { work(a, of_a); });
  std::thread second([&] { work(b, of_b); });
  first.join();
  second.join();
  std::thread third([&] { of_a.clear(); });
  std::thread fourth([&] { of_b.clear(); });
  third.join();
  fourth.join();
  for (Context* context : {&a, &b}) {
    EXPECT_EQ(context->allocator().stats().allocations, 500);
    EXPECT_EQ(context->allocator().stats().allocated.current, 0u);
  }
}

}  // namespace
}  // namespace heddle
