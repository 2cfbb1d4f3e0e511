// Backward of the position encoding by cosine on the CPU: lrpe_backward.h with the angles of lrpe_encoding.h.
#include "kernels/position/cpu/lrpe_backward.h"
#include "kernels/position/lrpe_cosine.h"

namespace heddle::kernels::cpu {

void lrpe_cosine_backward(Context& context, const LrpeCosineBackwardArgs& args) {
  lrpe_backward<Cosine>(context, args);
}

}  // namespace heddle::kernels::cpu
