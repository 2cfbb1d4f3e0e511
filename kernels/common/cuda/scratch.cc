#include "kernels/common/cuda/scratch.h"

namespace heddle::kernels::cuda {

Scratch::Scratch(Context& context) : context_(context), data_(context.backend().allocate(kBytes)) {
  if (data_ == nullptr) {
    throw OutOfMemory(fmt::format("out of memory on {}: no room for the {} MiB of scratch memory of its kernels",
                                  to_string(context.device()), kBytes >> 20));
  }
  context.add_library_bytes(kBytes);
}

Scratch::~Scratch() { context_.backend().deallocate(data_, kBytes); }

}  // namespace heddle::kernels::cuda
