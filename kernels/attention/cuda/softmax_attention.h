// The kernels of softmax attention on GPUs: on the tensor cores of sm_90a for 16-bit heads of 64 or 128 features, on
// those of any GPU for heads of up to 256, each dtype in a file of its own, and for any dtype and size without them.
#pragma once

#include "kernels/attention/softmax_attention.h"
#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda::softmax {

// T is float, bf16 or fp16. Each launches nothing and returns false where there is no kernel for the sizes.
template <class T>
bool forward_on_tensor_cores(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_tensor_cores(Context& context, const SoftmaxAttentionBackwardArgs& args);

// The same on the tensor cores of sm_90a, where P and dS are one number of T. Forward is for bf16 and fp16, backward for
// bf16: dS may leave the range of fp16.
template <class T>
bool forward_on_hopper(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_hopper(Context& context, const SoftmaxAttentionBackwardArgs& args);

}  // namespace heddle::kernels::cuda::softmax
