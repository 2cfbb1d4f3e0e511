#include "core/runtime/context.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <thread>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/runtime/error.h"
#include "core/runtime/graph.h"
#include "core/runtime/message.h"

namespace heddle {
namespace {

std::unique_ptr<Backend> make_backend(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return std::make_unique<HostBackend>();
    case DeviceType::meta:
      return make_meta_backend();
    case DeviceType::cuda:
#if defined(HEDDLE_CUDA)
      return make_cuda_backend(device.index);
#else
      break;
#endif
  }
  fail("device {} is not available: this heddle was built without CUDA", to_string(device));
}

// OpenMP's answer minds OMP_NUM_THREADS and the cores this process may use.
int available_threads() {
#if defined(_OPENMP)
  const int threads = omp_get_max_threads();
#else
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
#endif
  return std::clamp(threads, 1, kMostThreads);
}

}  // namespace

Context::Context(Device device, const ContextOptions& options) : Context(make_backend(device), options) {}

Context::Context(std::unique_ptr<Backend> backend, const ContextOptions& options)
    : allocator_(std::make_shared<CachingAllocator>(std::move(backend), options.allocator)) {
  check(options.threads >= 0 && options.threads <= kMostThreads,
        "found {} threads for a context, expected 1 to {}, or 0 for all", options.threads, kMostThreads);
  threads_ = options.threads > 0 ? options.threads : available_threads();
  stream_ = allocator_->backend().create_stream();
  names_ranges_ = allocator_->backend().names_ranges();
}

Context::~Context() {
  if (pool_ != 0) abort_capture();
  try {
    synchronize();
  } catch (const std::exception& error) {
    print_message(stderr,
                  fmt::format("error: {}\n", error.what()));  // the device failed in work that nobody waited for
  }
  resources_.clear();
  backend().destroy_stream(stream_);
}

void Context::name_range() { backend().name_range(allocator_->scope_name(label_.scope)); }

void Context::begin_capture() {
  check(pool_ == 0, "a graph is being captured already");
  backend().begin_capture(stream_);
  pool_ = allocator_->open_pool();
}

Graph Context::end_capture() {
  check(pool_ != 0, "no graph is being captured");
  const uint64_t pool = std::exchange(pool_, 0);
  allocator_->close_pool();
  GraphHandle handle = nullptr;
  try {
    handle = backend().end_capture(stream_, false);
  } catch (...) {
    allocator_->retire_pool(pool);
    throw;
  }
  return {*this, handle, pool};
}

void Context::abort_capture() noexcept {
  const uint64_t pool = std::exchange(pool_, 0);
  if (pool == 0) return;
  allocator_->close_pool();
  backend().end_capture(stream_, true);
  allocator_->retire_pool(pool);
}

MemoryScope::MemoryScope(Context& context, MemoryLabel label) : context_(context), outer_(context.label()) {
  context.set_label(label);
}

MemoryScope::MemoryScope(Context& context, MemoryCategory category)
    : MemoryScope(context, MemoryLabel{context.label().scope, category}) {}

MemoryScope::MemoryScope(Context& context, std::string_view name)
    : MemoryScope(context, name, context.label().category) {}

MemoryScope::MemoryScope(Context& context, std::string_view name, MemoryCategory category)
    : context_(context), outer_(context.label()) {
  CachingAllocator& allocator = context.allocator();
  std::string path = allocator.scope_name(outer_.scope);
  if (!path.empty()) path += '.';
  path += name;
  context.set_label({allocator.intern_scope(path), category});
}

}  // namespace heddle
