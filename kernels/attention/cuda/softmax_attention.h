// The kernels of softmax attention on GPUs: of one query without tensor cores, on the tensor cores of sm_90a for
// bfloat16 heads of 64 or 128 features, on those of any GPU for heads of up to 256, each dtype in a file of its own,
// and for any dtype and size without them.
#pragma once

#include "kernels/attention/softmax_attention.h"
#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda::softmax {

// T is float, bf16 or fp16. Each launches nothing and returns false where there is no kernel for the sizes.
template <class T>
bool forward_on_tensor_cores(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_tensor_cores(Context& context, const SoftmaxAttentionBackwardArgs& args);

// The same for T bf16 on the tensor cores of sm_90a, where P and dS are one number of T each.
template <class T>
bool forward_on_hopper(Context& context, const SoftmaxAttentionForwardArgs& args);
template <class T>
bool backward_on_hopper(Context& context, const SoftmaxAttentionBackwardArgs& args);

// The same for one query a head, whose inputs can be read 16 bytes at a time, in exact products of T.
template <class T>
bool forward_of_one_query(Context& context, const SoftmaxAttentionForwardArgs& args);

}  // namespace heddle::kernels::cuda::softmax
