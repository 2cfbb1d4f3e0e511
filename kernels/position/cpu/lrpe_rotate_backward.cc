// Backward of the position encoding by rotation on the CPU: lrpe_backward.h with the angles of lrpe_encoding.h.
#include "kernels/position/cpu/lrpe_backward.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels::cpu {

void lrpe_rotate_backward(Context& context, const LrpeRotateBackwardArgs& args) {
  lrpe_backward<Rotation>(context, args);
}

}  // namespace heddle::kernels::cpu
