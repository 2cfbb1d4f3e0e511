// Softmax attention on the tensor cores of sm_90a.
#include "kernels/attention/cuda/softmax_attention_hopper_forward.h"
#include "kernels/attention/cuda/softmax_attention_hopper_gradients.h"

namespace heddle::kernels::cuda::softmax {

template bool forward_on_hopper<bf16>(Context& context, const SoftmaxAttentionForwardArgs& args);
template bool forward_on_hopper<fp16>(Context& context, const SoftmaxAttentionForwardArgs& args);
template bool backward_on_hopper<bf16>(Context& context, const SoftmaxAttentionBackwardArgs& args);

}  // namespace heddle::kernels::cuda::softmax
