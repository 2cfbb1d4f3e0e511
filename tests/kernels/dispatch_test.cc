// The macros that declare kernels: which device's function is called, and what a device without one says. The devices
// are fakes, so that the branch of a GPU is tested on machines without one.
#include "kernels/common/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"
#include "tests/runtime/fake_backend.h"

// A program outside heddle, with kernels of its own in a namespace of its own.
namespace user_program {

struct ScaleArgs {
  double* value = nullptr;
};
// The same, whose calls tell their work.
struct CountedArgs {
  double* value = nullptr;
  int64_t size = 0;
};
inline heddle::KernelWork work_of(const CountedArgs& args) {
  return {.sizes = {args.size}, .operations = 2.0 * static_cast<double>(args.size)};
}

HEDDLE_KERNEL(scale_everywhere, ScaleArgs);
HEDDLE_CPU_KERNEL(scale_on_cpu, ScaleArgs);
HEDDLE_CPU_KERNEL(scale_counted, CountedArgs);
HEDDLE_CUDA_KERNEL(scale_on_cuda, ScaleArgs);

namespace cpu {
void scale_everywhere(heddle::Context&, const ScaleArgs& args) { *args.value *= 2.0; }
void scale_on_cpu(heddle::Context&, const ScaleArgs& args) { *args.value *= 3.0; }
void scale_counted(heddle::Context&, const CountedArgs& args) { *args.value *= 11.0; }
}  // namespace cpu

#if defined(HEDDLE_CUDA)
namespace cuda {
void scale_everywhere(heddle::Context&, const ScaleArgs& args) { *args.value *= 5.0; }
void scale_on_cuda(heddle::Context&, const ScaleArgs& args) { *args.value *= 7.0; }
}  // namespace cuda
#endif

}  // namespace user_program

namespace heddle {
namespace {

using ::testing::StrEq;
using ::testing::ThrowsMessage;
using user_program::scale_everywhere;
using user_program::scale_on_cpu;
using user_program::scale_on_cuda;

class FakeDevice : public FakeBackend {
 public:
  explicit FakeDevice(DeviceType type) : device_{type} {}
  Device device() const override { return device_; }

 private:
  Device device_;
};

class Dispatch : public ::testing::Test {
 protected:
  Context cpu_{std::make_unique<FakeDevice>(DeviceType::cpu)};
  Context cuda_{std::make_unique<FakeDevice>(DeviceType::cuda)};
  Context meta_{std::make_unique<FakeDevice>(DeviceType::meta)};
  double value_ = 1.0;
};

TEST_F(Dispatch, AKernelOfBothDevicesIsThatOfTheContext) {
  scale_everywhere(cpu_, {&value_});
  EXPECT_EQ(value_, 2.0);
#if defined(HEDDLE_CUDA)
  scale_everywhere(cuda_, {&value_});
  EXPECT_EQ(value_, 10.0);
#else
  EXPECT_THAT([&] { scale_everywhere(cuda_, {&value_}); },
              ThrowsMessage<Error>(StrEq("[scale_everywhere] has no CUDA kernel; run it with --device cpu")));
  EXPECT_EQ(value_, 2.0);
#endif
}

TEST_F(Dispatch, AKernelOfTheCpuSaysSoOnAGpu) {
  scale_on_cpu(cpu_, {&value_});
  EXPECT_EQ(value_, 3.0);
  EXPECT_THAT([&] { scale_on_cpu(cuda_, {&value_}); },
              ThrowsMessage<Error>(StrEq("[scale_on_cpu] has no CUDA kernel; run it with --device cpu")));
  EXPECT_EQ(value_, 3.0);
}

TEST_F(Dispatch, AKernelOfGpusSaysSoOnTheCpu) {
  EXPECT_THAT([&] { scale_on_cuda(cpu_, {&value_}); },
              ThrowsMessage<Error>(StrEq("[scale_on_cuda] has no CPU kernel; run it with --device cuda")));
  EXPECT_EQ(value_, 1.0);
#if defined(HEDDLE_CUDA)
  scale_on_cuda(cuda_, {&value_});
  EXPECT_EQ(value_, 7.0);
#endif
}

// A listener hears of every call before and after it, with the work that the kernel tells.
TEST_F(Dispatch, AListenerHearsOfEveryCall) {
  struct Listener : WorkListener {
    explicit Listener(const double& value) : value(value) {}
    void mark(std::string_view moment) override { told.push_back("mark " + std::string(moment)); }
    void begin_kernel(const char* name, const KernelWork& work) override {
      told.push_back(std::string(name) + " " + std::to_string(work.sizes[0]) + " at " +
                     std::to_string(static_cast<int>(value)));
      operations += work.operations;
    }
    void end_kernel() override { told.push_back("end at " + std::to_string(static_cast<int>(value))); }
    const double& value;
    std::vector<std::string> told;
    double operations = 0.0;
  };
  Listener listener(value_);
  scale_on_cpu(cpu_, {&value_});
  cpu_.set_listener(&listener);
  cpu_.mark("forward");
  scale_on_cpu(cpu_, {&value_});
  user_program::scale_counted(cpu_, {&value_, 21});
  cpu_.set_listener(nullptr);
  cpu_.mark("later");
  scale_on_cpu(cpu_, {&value_});
  EXPECT_THAT(listener.told, ::testing::ElementsAre("mark forward", "scale_on_cpu 0 at 3", "end at 9",
                                                    "scale_counted 21 at 9", "end at 99"));
  EXPECT_EQ(listener.operations, 42.0);
  EXPECT_EQ(value_, 297.0);
}

TEST_F(Dispatch, NothingIsComputedOnTheMetaDevice) {
  scale_everywhere(meta_, {&value_});
  scale_on_cpu(meta_, {&value_});
  scale_on_cuda(meta_, {&value_});
  EXPECT_EQ(value_, 1.0);
}

}  // namespace
}  // namespace heddle
