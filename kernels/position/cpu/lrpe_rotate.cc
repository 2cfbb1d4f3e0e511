// Forward of the position encoding by rotation on the CPU: lrpe_forward.h with the angles of lrpe_encoding.h.
#include "kernels/position/lrpe_rotate.h"

#include "kernels/position/cpu/lrpe_forward.h"

namespace heddle::kernels::cpu {

void lrpe_rotate_forward(Context& context, const LrpeRotateForwardArgs& args) { lrpe_forward<Rotation>(context, args); }

}  // namespace heddle::kernels::cpu
