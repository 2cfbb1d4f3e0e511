#include "layers/modules/mixers/heads.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

void describe_heads(ConfigFields& fields, const ModelSize& model, int64_t& heads) {
  fields.required("heads", heads, Range::count());
  if (!fields.reads() || model.dim % heads == 0) return;
  fields.fail("heads", fmt::format("found {}, expected a divisor of dim, which is {}", heads, model.dim));
}

void describe_kv_heads(ConfigFields& fields, int64_t heads, int64_t& kv_heads) {
  fields.field("kv_heads", kv_heads, Range::between(0, Range::count().high));
  if (!fields.reads() || kv_heads == 0 || heads % kv_heads == 0) return;
  fields.fail("kv_heads", fmt::format("found {}, expected a divisor of heads, which is {}", kv_heads, heads));
}

double out_init_std(const BlockPlace& place, int64_t in) {
  return 1.0 / std::sqrt(2.0 * static_cast<double>(place.layers) * static_cast<double>(in));
}

void check_mixer_input(std::string_view type, const Variable& x, int64_t dim) {
  check(x.value.rank() == 3 && x.shape()[-1] == dim, "[{}] x has shape {}, expected (batch, length, {})", type,
        to_string(x.shape()), dim);
}

void check_no_state_beside(std::string_view type, const MixerState* state, const Tensor& segments) {
  check(state == nullptr || !segments.defined(),
        "[{}] found segments beside a state, expected one of them: a state goes on with one document", type);
}

Tensor saved_position(Context& context, int64_t position) {
  const Tensor at = Tensor::empty(context, {1}, DType::int32);
  write_values(context, at, {static_cast<double>(position)});
  return at;
}

}  // namespace heddle
