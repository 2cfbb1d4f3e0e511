// Position encoding by rotation, backward, on the CPU: lrpe_backward.h with the angles and the features of
// lrpe_encoding.h.
#include "kernels/cpu/detail/lrpe_backward.h"
#include "kernels/lrpe_rotate.h"

namespace heddle::kernels::cpu {

void lrpe_rotate_backward(Context& context, const LrpeRotateBackwardArgs& args) {
  lrpe_backward<Rotation>(context, args);
}

}  // namespace heddle::kernels::cpu
