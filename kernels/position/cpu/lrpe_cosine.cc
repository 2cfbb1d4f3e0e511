// Forward of the position encoding by cosine on the CPU: lrpe_forward.h with the angles of lrpe_encoding.h.
#include "kernels/position/lrpe_cosine.h"

#include "kernels/position/cpu/lrpe_forward.h"

namespace heddle::kernels::cpu {

void lrpe_cosine_forward(Context& context, const LrpeCosineForwardArgs& args) { lrpe_forward<Cosine>(context, args); }

}  // namespace heddle::kernels::cpu
