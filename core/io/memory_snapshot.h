// The memory of a device as a file that PyTorch's memory viewer opens (https://pytorch.org/memory_viz): what is taken
// from the device, with its blocks, and the events that the allocator recorded.                   docs/memory.md
#pragma once

#include <string>

#include "core/runtime/allocator.h"

namespace heddle {

// A pickle of protocol 4 of what torch.cuda.memory._snapshot() returns. Scopes stand where Python has stack frames.
// Events carry the bytes that the allocator counts, in units of 512, and their category; a last event `snapshot` has
// the category "unknown", which the viewer wants.
std::string memory_snapshot(const CachingAllocator& allocator);

}  // namespace heddle
