// Moving data between tensors and the host, and within a device. Ordered on the context's stream. Each throws Error for
// a tensor on another device than the context's, unless that is meta.
#pragma once

#include <vector>

#include "core/runtime/context.h"
#include "core/tensor/tensor.h"

namespace heddle {

// Copies numel() elements of the tensor's dtype. The tensor must be contiguous. host must stay valid until the copy is
// done (context.synchronize()) on devices other than the CPU when it is pinned (stream.h).
void copy_from_host(Context& context, const Tensor& tensor, const void* host);
// Waits for the device; the tensor must be contiguous. An Error on meta.
void copy_to_host(Context& context, const Tensor& tensor, void* host);
// May return before the copy is done (an Event or context.synchronize() tells): asynchronous when host is pinned.
void copy_to_host_async(Context& context, const Tensor& tensor, void* host);
// `to` = `from`: same shape and dtype, any strides; one copy for each range that is contiguous in both.
void copy(Context& context, const Tensor& to, const Tensor& from);
// A contiguous copy, under the context's current label.
Tensor clone(Context& context, const Tensor& tensor);

// All elements, row-major, as double (int64 beyond 2^53 is rounded). Any strides, any dtype, any device with data.
std::vector<double> read_values(Context& context, const Tensor& tensor);
// Rounds each value once, to the nearest, to the tensor's dtype. Integer dtypes take integers in their range only.
// Any strides; values.size() must be numel().
void write_values(Context& context, const Tensor& tensor, const std::vector<double>& values);

// One number of `dtype` at `place` in host memory, rounded as write_values() does.
void write_number(void* place, DType dtype, double value);
double read_number(const void* place, DType dtype);

// Any strides.
void fill_zero(Context& context, const Tensor& tensor);
// Sets all bytes to 0xFF: NaN in every floating dtype. For tests that want to see what a kernel left unwritten.
void poison(Context& context, const Tensor& tensor);

}  // namespace heddle
