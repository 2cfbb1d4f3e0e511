#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/distributed/control_channel.h"
#include "core/distributed/nccl.h"
#include "core/distributed/nccl_library.h"
#include "core/runtime/context.h"
#include "core/runtime/cuda_check.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

ncclDataType_t data_type_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return ncclFloat64;
    case DType::float32:
      return ncclFloat32;
    case DType::bfloat16:
      return ncclBfloat16;
    case DType::float16:
      return ncclFloat16;
    case DType::int32:
      return ncclInt32;
    case DType::int64:
      return ncclInt64;
  }
  fail("NCCL knows no such dtype");
}

// The number of elements of each part when they are all equal; 0 when they are not, or are empty.
size_t equal_parts(std::span<const int64_t> bounds) {
  for (size_t r = 2; r < bounds.size(); ++r) {
    if (bounds[r] - bounds[r - 1] != bounds[1] - bounds[0]) return 0;
  }
  return static_cast<size_t>(bounds[1] - bounds[0]);
}

// What tells one GPU of a host from another.
std::string bus_id(int device) {
  char id[32] = {};
  HEDDLE_CUDA_CHECK(cudaDeviceGetPCIBusId(id, sizeof(id), device));
  return id;
}

// Every call of NCCL is made with mutex_ held: the channel's thread ends NCCL's work when a process is lost. A call
// that waits for the lost process keeps it from doing so, and is ended with the whole process, when the channel's grace
// is over.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Launch& launch, Context& context, const RendezvousOptions& options)
      : device_(context.device().index), exceptions_(std::uncaught_exceptions()) {
    ControlChannelOptions channel_options;
    channel_options.on_failure = [this] { abort_nccl(); };
    channel_options.watch = [this] { return find_error(); };
    channel_ = std::make_unique<ControlChannel>(meet(launch, options), channel_options);
    connect();
  }

  ~NcclCommunicator() override {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    const bool is_well = channel_->failure().empty() && std::uncaught_exceptions() <= exceptions_;
    if (is_well) {
      library_.comm_destroy(comm_);
    } else {
      library_.comm_abort(comm_);
    }
    comm_ = nullptr;
  }

  std::string_view name() const override { return "nccl"; }
  int rank() const override { return channel_->rank(); }
  int size() const override { return channel_->world_size(); }
  bool can_be_captured() const override { return true; }

  void all_reduce(const Tensor& values, StreamHandle stream) override {
    const std::lock_guard lock(mutex_);
    begin();
    if (values.numel() == 0) return;
    check_nccl(library_.all_reduce(values.raw(), values.raw(), static_cast<size_t>(values.numel()),
                                   data_type_of(values.dtype()), ncclSum, comm_, stream),
               "ncclAllReduce");
  }

  void reduce_scatter(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) override {
    const std::lock_guard lock(mutex_);
    begin();
    const ncclDataType_t type = data_type_of(values.dtype());
    if (const size_t count = equal_parts(bounds); count > 0) {
      return check_nccl(
          library_.reduce_scatter(values.raw(), place(values, bounds, rank()), count, type, ncclSum, comm_, stream),
          "ncclReduceScatter");
    }
    for_each_part(bounds, [&](int part, size_t count) {
      void* data = place(values, bounds, part);
      check_nccl(library_.reduce(data, data, count, type, ncclSum, part, comm_, stream), "ncclReduce");
    });
  }

  void all_gather(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) override {
    const std::lock_guard lock(mutex_);
    begin();
    const size_t element = size_of(values.dtype());
    if (const size_t count = equal_parts(bounds); count > 0) {
      return check_nccl(
          library_.all_gather(place(values, bounds, rank()), values.raw(), count * element, ncclInt8, comm_, stream),
          "ncclAllGather");
    }
    for_each_part(bounds, [&](int part, size_t count) {
      void* data = place(values, bounds, part);
      check_nccl(library_.broadcast(data, data, count * element, ncclInt8, part, comm_, stream), "ncclBroadcast");
    });
  }

  void broadcast(const Tensor& values, int root, StreamHandle stream) override {
    const std::lock_guard lock(mutex_);
    begin();
    if (values.numel() == 0) return;
    const size_t bytes = static_cast<size_t>(values.numel()) * size_of(values.dtype());
    check_nccl(library_.broadcast(values.raw(), values.raw(), bytes, ncclInt8, root, comm_, stream), "ncclBroadcast");
  }

  std::vector<std::string> all_gather_bytes(std::string_view bytes) override { return channel_->all_gather(bytes); }
  void barrier() override { channel_->all_gather(""); }
  void abort(std::string_view message) noexcept override { channel_->fail(message); }

 private:
  // Makes NCCL's communicator, after a look at what it would not say clearly.
  void connect() {
    const std::string version = library_.version();
    ncclUniqueId id{};
    if (rank() == 0) check_nccl(library_.get_unique_id(&id), "ncclGetUniqueId");
    PayloadWriter own;
    own.add(version).add(host_name()).add(bus_id(device_)).add(std::string_view(id.internal, sizeof(id.internal)));
    std::map<std::string, int> rank_of_gpu;
    const std::vector<std::string> all = channel_->all_gather(own.bytes());
    for (int other = 0; other < size(); ++other) {
      PayloadReader said(all[static_cast<size_t>(other)]);
      const std::string its_version = said.text().value_or(""), host = said.text().value_or("");
      const std::string gpu = said.text().value_or(""), its_id = said.text().value_or("");
      check(its_version == version, "rank {} on {} has NCCL {}, and rank {} on {} has {}: all need the same", other,
            host, its_version, rank(), host_name(), version);
      const auto [first, is_new] = rank_of_gpu.emplace(host + " " + gpu, other);
      check(is_new,
            "ranks {} and {} on {} both use the GPU {}: each process needs one of its own (LOCAL_RANK, or --device)",
            first->second, other, host, gpu);
      if (other == 0) std::memcpy(id.internal, its_id.data(), std::min(its_id.size(), sizeof(id.internal)));
    }
    HEDDLE_CUDA_CHECK(cudaSetDevice(device_));
    ncclComm_t comm = nullptr;
    check_nccl(library_.comm_init_rank(&comm, size(), id, rank()), "ncclCommInitRank");
    const std::lock_guard lock(mutex_);
    comm_ = comm;
  }

  // NCCL may be the first to notice that a process is gone. It cannot say which, as the channel can a moment later.
  void check_nccl(ncclResult_t result, const char* call) const {
    if (result != ncclSuccess) channel_->check(std::chrono::seconds(3));
    library_.check(result, call);
  }

  // Before every call: the device, and whether there still is a communicator.
  void begin() const {
    if (comm_ == nullptr) {
      channel_->check();
      fail("NCCL has ended");
    }
    HEDDLE_CUDA_CHECK(cudaSetDevice(device_));
  }

  // On the channel's thread.
  void abort_nccl() {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) library_.comm_abort(comm_);
    comm_ = nullptr;
  }
  std::string find_error() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || comm_ == nullptr) return "";
    ncclResult_t found = ncclSuccess;
    if (library_.comm_get_async_error(comm_, &found) != ncclSuccess || found == ncclSuccess ||
        found == ncclInProgress) {
      return "";
    }
    return fmt::format("NCCL: {}", library_.get_error_string(found));
  }

  static void* place(const Tensor& values, std::span<const int64_t> bounds, int part) {
    return static_cast<char*>(values.raw()) +
           bounds[static_cast<size_t>(part)] * static_cast<int64_t>(size_of(values.dtype()));
  }
  // Calls work(part, elements) for the parts that are not empty, as one operation.
  template <class Work>
  void for_each_part(std::span<const int64_t> bounds, const Work& work) const {
    check_nccl(library_.group_start(), "ncclGroupStart");
    for (int part = 0; part + 1 < static_cast<int>(bounds.size()); ++part) {
      const int64_t count = bounds[static_cast<size_t>(part) + 1] - bounds[static_cast<size_t>(part)];
      if (count > 0) work(part, static_cast<size_t>(count));
    }
    check_nccl(library_.group_end(), "ncclGroupEnd");
  }

  const NcclLibrary library_;
  const int device_;
  const int exceptions_;  // on their way when this was made
  mutable std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  std::unique_ptr<ControlChannel> channel_;  // the last member: its thread uses the others
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, Context& context,
                                                     const RendezvousOptions& options) {
  check(context.device().type == DeviceType::cuda, "several processes by NCCL need a GPU each, found device {}",
        to_string(context.device()));
  return std::make_unique<NcclCommunicator>(launch, context, options);
}

}  // namespace heddle
