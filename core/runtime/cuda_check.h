// Turns a failed CUDA call into an Error with expression, file and line. Needs no CUDA header; CUDA builds only.
#pragma once

namespace heddle {

// Throws Error unless `code`, a cudaError_t, is success.
void check_cuda(int code, const char* expression, const char* file, int line);

}  // namespace heddle

#define HEDDLE_CUDA_CHECK(expression) \
  ::heddle::check_cuda(static_cast<int>(expression), #expression, __FILE__, __LINE__)
