// Softmax attention on tensor cores in float16.
#include "kernels/attention/cuda/softmax_attention_backward.h"
#include "kernels/attention/cuda/softmax_attention_forward.h"

namespace heddle::kernels::cuda::softmax {

template bool forward_on_tensor_cores<fp16>(Context& context, const SoftmaxAttentionForwardArgs& args);
template bool backward_on_tensor_cores<fp16>(Context& context, const SoftmaxAttentionBackwardArgs& args);

}  // namespace heddle::kernels::cuda::softmax
