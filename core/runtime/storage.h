// One block of an allocator, owned: given back when the last tensor that uses it goes.
#pragma once

#include <cstddef>
#include <memory>

#include "core/runtime/allocator.h"

namespace heddle {

class Context;

class Storage {
 public:
  // Takes `bytes` from the context's allocator under the context's current label. Throws OutOfMemory.
  Storage(Context& context, size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const;
  Device device() const { return allocator_->device(); }

 private:
  std::shared_ptr<CachingAllocator> allocator_;
  CachingAllocator::Block* block_;
};

}  // namespace heddle
