// operator new and delete as those of the standard library, but new notes the size. In a file of their own, since GCC
// takes a delete that is inlined where its new is not for another one's.
#include "tests/fuzz/largest_request.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace heddle::fuzz {

std::atomic<std::size_t> largest_request{0};

}  // namespace heddle::fuzz

void* operator new(std::size_t bytes) {
  using heddle::fuzz::largest_request;
  std::size_t largest = largest_request;
  while (bytes > largest && !largest_request.compare_exchange_weak(largest, bytes)) continue;
  if (void* memory = std::malloc(std::max<std::size_t>(bytes, 1))) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
