// Graphs on a fake device that has them: whose memory is whose, what a failed capture leaves. Streams, events and
// pinned memory where there are none.
#include "core/runtime/graph.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/runtime/stream.h"
#include "core/tensor/tensor.h"
#include "tests/runtime/fake_backend.h"

namespace heddle {
namespace {

// Captures and replays nothing, and counts.
struct GraphCounts {
  int captures = 0, replays = 0, graphs = 0;
};

class GraphBackend : public FakeBackend {
 public:
  explicit GraphBackend(GraphCounts& counts) : counts_(counts) {}
  StreamHandle create_stream() override { return fake_stream(1); }
  bool has_graphs() const override { return true; }
  void begin_capture(StreamHandle) override { ++counts_.captures; }
  GraphHandle end_capture(StreamHandle, bool discard) override {
    if (discard) return nullptr;
    ++counts_.graphs;
    return reinterpret_cast<GraphHandle>(uintptr_t{7});
  }
  void replay(GraphHandle, StreamHandle) override { ++counts_.replays; }
  void destroy_graph(GraphHandle) noexcept override { --counts_.graphs; }

 private:
  GraphCounts& counts_;
};

constexpr size_t kLarge = size_t{32} << 20;  // a segment of its own

class GraphPools : public ::testing::Test {
 protected:
  Tensor large() { return Tensor::empty(context_, {static_cast<int64_t>(kLarge)}, DType::bfloat16); }

  size_t device_frees() { return static_cast<size_t>(context_.allocator().stats().device_frees); }

  GraphCounts device_;
  Context context_{std::make_unique<GraphBackend>(device_)};
};

TEST_F(GraphPools, AGraphKeepsItsMemoryAndReusesItWithin) {
  void* address = nullptr;
  {
    Graph graph = capture(context_, [&] {
      address = large().raw();
      EXPECT_EQ(large().raw(), address);
    });
    EXPECT_EQ(device_.graphs, 1);
    EXPECT_NE(large().raw(), address);
    context_.allocator().release_cached();
    EXPECT_EQ(device_frees(), 1u);  // what was made outside, not the graph's
    graph.replay();
    graph.replay();
    EXPECT_EQ(device_.replays, 2);
  }
  EXPECT_EQ(device_.graphs, 0);
  EXPECT_EQ(large().raw(), address);  // now anybody's
}

TEST_F(GraphPools, ATensorMayOutliveTheGraphThatMadeIt) {
  Tensor kept;
  {
    const Graph graph = capture(context_, [&] { kept = large(); });
  }
  void* const address = kept.raw();
  EXPECT_NE(large().raw(), address);
  kept = {};
  context_.allocator().release_cached();
  EXPECT_EQ(context_.allocator().stats().reserved.current, 0u);
}

TEST_F(GraphPools, ACaptureThatFailsGivesItsMemoryBack) {
  EXPECT_THROW(capture(context_,
                       [&] {
                         large();
                         fail("no");
                       }),
               Error);
  EXPECT_EQ(context_.pool(), 0u);
  EXPECT_EQ(device_.graphs, 0);
  context_.allocator().release_cached();
  EXPECT_EQ(context_.allocator().stats().reserved.current, 0u);
  EXPECT_NO_THROW(capture(context_, [] {}));
}

// Marks in other streams cannot be set while a graph is captured: a block that such a stream uses waits until after.
TEST_F(GraphPools, OtherStreamsAreMarkedAfterTheCapture) {
  CachingAllocator& allocator = context_.allocator();
  auto& backend = static_cast<GraphBackend&>(context_.backend());
  auto* block = allocator.allocate(2 * kLarge, context_.stream(), {});
  void* const address = CachingAllocator::data(block);
  allocator.record_use(block, fake_stream(2));
  Graph graph = capture(context_, [&] {
    allocator.free(block);
    EXPECT_NE(large().raw(), address);
    EXPECT_EQ(backend.events, 1);
  });
  EXPECT_NE(large().raw(), address);
  backend.done.insert(reinterpret_cast<EventHandle>(uintptr_t{1}));
  EXPECT_EQ(large().raw(), address);
  EXPECT_EQ(backend.events, 0);
}

TEST_F(GraphPools, OnlyOneGraphAtATime) {
  context_.begin_capture();
  EXPECT_THROW(context_.begin_capture(), Error);
  context_.abort_capture();
  EXPECT_THROW(context_.end_capture(), Error);
}

TEST(Graphs, TheCpuHasNone) {
  for (const DeviceType type : {DeviceType::cpu, DeviceType::meta}) {
    Context context({type});
    EXPECT_THROW(capture(context, [] {}), Error);
    EXPECT_EQ(context.pool(), 0u);
    EXPECT_FALSE(context.backend().has_graphs());
  }
  EXPECT_THROW(Graph().replay(), Error);
}

TEST(Streams, OnTheCpuEventsTellTheTime) {
  Context context;
  const Stream stream(context);
  EXPECT_EQ(stream.handle(), nullptr);
  Event begin(context), end(context);
  begin.record(stream.handle());
  end.record(stream.handle());
  end.block(stream.handle());
  end.synchronize();
  EXPECT_TRUE(end.done());
  EXPECT_GE(begin.milliseconds_to(end), 0.0);
  PinnedBuffer buffer(context, 1000);
  PinnedBuffer moved = std::move(buffer);
  moved.as<char>()[999] = 1;
  EXPECT_EQ(moved.bytes(), 1000u);
}

}  // namespace
}  // namespace heddle
