// The kernels of softmax attention on GPUs: of one query without tensor cores; on the tensor cores of sm_90a for heads
// of 64 or 128 features in bfloat16, and forward in float16; on those of any GPU for heads of up to 256, each dtype in
// a file of its own; and for any dtype and size without them.
#pragma once

#include "kernels/attention/softmax_attention.h"
#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda::softmax {

// T is float, bf16 or fp16. Each launches nothing and returns false where there is no kernel for the sizes.
template <class T>
bool forward_on_tensor_cores(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_tensor_cores(Context& context, const SoftmaxAttentionBackwardArgs& args);

// The same on the tensor cores of sm_90a, for T bf16, where P and dS are one number of T each. Forward also for T fp16,
// where P is two: dS would leave the range of one.
template <class T>
bool forward_on_hopper(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_hopper(Context& context, const SoftmaxAttentionBackwardArgs& args);

// The same for one query a head, whose inputs can be read 16 bytes at a time, in exact products of T.
template <class T>
bool forward_of_one_query(Context& context, const SoftmaxAttentionForwardArgs& args);

}  // namespace heddle::kernels::cuda::softmax
