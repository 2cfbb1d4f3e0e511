// The gradient of the log decays of heads of 16-bit numbers of up to kLargestTensorDim features. Scans that add to it
// on their way, as scan.h describes it, wait for it at every chunk; here the scans of d_q and d_k leave no more than
// the states around each window of kDecayWindow tokens, S before it and dS after it, and blocks of their own compute
// the windows, all at once. Within a window the formula is that of scan.h with the window in place of the chunk. It is
// linear in the features of q and k, and in those of v and d_o, so that heads of more than kDecayPart of either are
// computed in up to four parts, which add up.
#pragma once

#include <cstdint>

#include "core/runtime/context.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/linear_attention.h"

namespace heddle::kernels::cuda {

struct DecayGradientArgs {
  ScanArgs<float> decays;  // query, which is q, and the decays; nothing else of it counts
  HeadsView k, v, d_o;
  const float* states = nullptr;     // before the windows, (batch, heads, windows, D, Dv)
  const float* d_states = nullptr;   // the gradients of those after them
  float* token_gradients = nullptr;  // (=), (parts, batch, heads, length)
  float scale = 1.0f;
};

// Whether the gradient is computed by windows: numbers of 16 bits, at most kLargestTensorDim features, and a GPU whose
// blocks can have the shared memory.
bool has_decay_gradient_by_windows(const Context& context, const LinearAttentionBackwardArgs& args);
// Returns the number of parts.
int64_t decay_gradient_by_windows(Context& context, const DecayGradientArgs& args);

}  // namespace heddle::kernels::cuda
