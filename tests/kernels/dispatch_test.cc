// The macros that declare kernels: which device's function is called, and what a device without one says. The devices
// are fakes, so that the branch of a GPU is tested on machines without one.
#include "kernels/common/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "core/runtime/error.h"
#include "tests/runtime/fake_backend.h"

// A program outside heddle, with kernels of its own in a namespace of its own.
namespace user_program {

struct ScaleArgs {
  double* value = nullptr;
};

HEDDLE_KERNEL(scale_everywhere, ScaleArgs);
HEDDLE_CPU_KERNEL(scale_on_cpu, ScaleArgs);
HEDDLE_CUDA_KERNEL(scale_on_cuda, ScaleArgs);

namespace cpu {
void scale_everywhere(heddle::Context&, const ScaleArgs& args) { *args.value *= 2.0; }
void scale_on_cpu(heddle::Context&, const ScaleArgs& args) { *args.value *= 3.0; }
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

using testing::StrEq;
using testing::ThrowsMessage;
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

class Dispatch : public testing::Test {
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

TEST_F(Dispatch, NothingIsComputedOnTheMetaDevice) {
  scale_everywhere(meta_, {&value_});
  scale_on_cpu(meta_, {&value_});
  scale_on_cuda(meta_, {&value_});
  EXPECT_EQ(value_, 1.0);
}

}  // namespace
}  // namespace heddle
