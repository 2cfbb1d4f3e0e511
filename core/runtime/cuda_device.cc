// The backend of an NVIDIA GPU on the CUDA runtime. Every call makes its device the thread's current one, so contexts
// on several GPUs can be used alternately by one thread.
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "core/runtime/backend.h"
#include "core/runtime/cuda_check.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(int index) : index_(index) {
    use_device();
    cudaDeviceProp found;
    HEDDLE_CUDA_CHECK(cudaGetDeviceProperties(&found, index));
    properties_ = {.name = found.name,
                   .multiprocessors = found.multiProcessorCount,
                   .compute_capability = 10 * found.major + found.minor,
                   .memory_bytes = found.totalGlobalMem,
                   .l2_bytes = static_cast<size_t>(found.l2CacheSize),
                   .shared_bytes_per_block = found.sharedMemPerBlockOptin};
  }

  Device device() const override { return {DeviceType::cuda, index_}; }
  const DeviceProperties& properties() const override { return properties_; }

  void* allocate(size_t bytes) override {
    use_device();
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // an answer, not a failure that the next launch should report
      return nullptr;
    }
    check_cuda(status, "cudaMalloc", __FILE__, __LINE__);
    return data;
  }
  // Errors of work that is still running would be reported here: it is left to the next call that can throw.
  void deallocate(void* data, size_t) noexcept override {
    cudaSetDevice(index_);
    cudaFree(data);
  }

  void copy_from_host(void* device_data, const void* host_data, size_t bytes, StreamHandle stream) override {
    copy_async(device_data, host_data, bytes, cudaMemcpyHostToDevice, stream);
  }
  void copy_to_host(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) override {
    copy_async(host_data, device_data, bytes, cudaMemcpyDeviceToHost, stream);
    synchronize(stream);
  }
  void copy_to_host_async(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) override {
    copy_async(host_data, device_data, bytes, cudaMemcpyDeviceToHost, stream);
  }
  void copy(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    copy_async(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
  }
  void fill_bytes(void* data, int byte, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    use_device();
    HEDDLE_CUDA_CHECK(cudaMemsetAsync(data, byte, bytes, stream));
  }
  void synchronize(StreamHandle stream) override {
    use_device();
    HEDDLE_CUDA_CHECK(cudaStreamSynchronize(stream));
  }

  void* allocate_pinned(size_t bytes) override {
    use_device();
    void* data = nullptr;
    HEDDLE_CUDA_CHECK(cudaMallocHost(&data, bytes > 0 ? bytes : 1));
    return data;
  }
  void deallocate_pinned(void* data) noexcept override { cudaFreeHost(data); }

  StreamHandle create_stream() override {
    use_device();
    StreamHandle stream = nullptr;
    HEDDLE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
  }
  void destroy_stream(StreamHandle stream) noexcept override { cudaStreamDestroy(stream); }

  EventHandle create_event() override {
    use_device();
    EventHandle event = nullptr;
    HEDDLE_CUDA_CHECK(cudaEventCreate(&event));
    return event;
  }
  void destroy_event(EventHandle event) noexcept override { cudaEventDestroy(event); }
  void record_event(EventHandle event, StreamHandle stream) override {
    use_device();
    HEDDLE_CUDA_CHECK(cudaEventRecord(event, stream));
  }
  bool event_done(EventHandle event) override {
    const cudaError_t status = cudaEventQuery(event);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    check_cuda(status, "cudaEventQuery", __FILE__, __LINE__);
    return true;
  }
  void synchronize_event(EventHandle event) override { HEDDLE_CUDA_CHECK(cudaEventSynchronize(event)); }
  void wait_event(StreamHandle stream, EventHandle event) override {
    use_device();
    HEDDLE_CUDA_CHECK(cudaStreamWaitEvent(stream, event, 0));
  }
  double milliseconds_between(EventHandle begin, EventHandle end) override {
    float milliseconds = 0.0f;
    HEDDLE_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds;
  }

  bool has_graphs() const override { return true; }
  // Relaxed: the allocator may call cudaMalloc meanwhile.
  void begin_capture(StreamHandle stream) override {
    use_device();
    HEDDLE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  }
  GraphHandle end_capture(StreamHandle stream, bool discard) override {
    cudaGraph_t graph = nullptr;
    const cudaError_t status = cudaStreamEndCapture(stream, &graph);
    if (discard) {
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      return nullptr;
    }
    check_cuda(status, "cudaStreamEndCapture", __FILE__, __LINE__);
    GraphHandle executable = nullptr;
    const cudaError_t instantiated = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(instantiated, "cudaGraphInstantiate", __FILE__, __LINE__);
    HEDDLE_CUDA_CHECK(cudaGraphUpload(executable, stream));
    return executable;
  }
  void replay(GraphHandle graph, StreamHandle stream) override {
    use_device();
    HEDDLE_CUDA_CHECK(cudaGraphLaunch(graph, stream));
  }
  void destroy_graph(GraphHandle graph) noexcept override { cudaGraphExecDestroy(graph); }

  void record_timing(EventHandle event, StreamHandle stream) override {
    use_device();
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    HEDDLE_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    const bool captures = status != cudaStreamCaptureStatusNone;
    HEDDLE_CUDA_CHECK(
        cudaEventRecordWithFlags(event, stream, captures ? cudaEventRecordExternal : cudaEventRecordDefault));
  }

  // Ranges of NVTX. Where no tool is attached, each call tests a pointer and returns.
  bool names_ranges() const override { return true; }
  void name_range(std::string_view name) override { replace_range(in_layer_, name); }
  void name_phase(std::string_view name) override {
    replace_range(in_layer_, "");
    replace_range(in_phase_, name);
  }

 private:
  // Ends the innermost range if there is one, and begins one of this name, if any.
  static void replace_range(bool& is_open, std::string_view name) {
    if (is_open) nvtxRangePop();
    is_open = !name.empty();
    if (is_open) nvtxRangePushA(std::string(name).c_str());
  }
  void use_device() const { HEDDLE_CUDA_CHECK(cudaSetDevice(index_)); }
  void copy_async(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, StreamHandle stream) {
    if (bytes == 0) return;
    use_device();
    HEDDLE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream));
  }

  int index_;
  DeviceProperties properties_;
  bool in_phase_ = false, in_layer_ = false;
};

}  // namespace

void check_cuda(int code, const char* expression, const char* file, int line) {
  if (code == cudaSuccess) return;
  const auto status = static_cast<cudaError_t>(code);
  cudaGetLastError();  // so that it is not reported twice, where it can be cleared at all
  fail("{}:{}: {} failed: {} ({})", file, line, expression, cudaGetErrorString(status), cudaGetErrorName(status));
}

int cuda_device_count() noexcept {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status == cudaSuccess ? count : 0;
}

std::unique_ptr<Backend> make_cuda_backend(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  const std::string device = to_string({DeviceType::cuda, index});
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    check(driver != 0, "device {} is not available: no NVIDIA driver found", device);
    fail("device {} is not available: the NVIDIA driver is for CUDA {}.{}, expected {}.{} or newer", device,
         driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  check(status == cudaSuccess || status == cudaErrorNoDevice, "device {} is not available: {}", device,
        cudaGetErrorString(status));
  check(count > 0, "device {} is not available: no NVIDIA GPU found", device);
  check(0 <= index && index < count, "device {} is not available: the GPUs of this process are cuda:0 to cuda:{}",
        device, count - 1);
  return std::make_unique<CudaBackend>(index);
}

}  // namespace heddle
