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

void check_head_count(std::string_view type, int64_t dim, int64_t heads) {
  check(heads >= 1 && dim % heads == 0, "[{}] heads is {}, expected a divisor of dim {}", type, heads, dim);
}

void check_kv_heads(std::string_view type, int64_t heads, int64_t kv_heads) {
  check(kv_heads == 0 || (kv_heads > 0 && heads % kv_heads == 0),
        "[{}] kv_heads is {}, expected a divisor of the {} heads, or 0: as many", type, kv_heads, heads);
}

void check_positive(std::string_view type, std::string_view option, double found) {
  check(found > 0.0 && std::isfinite(found), "[{}] {} is {}, expected a number above 0", type, option, found);
}

void check_mixer_input(std::string_view type, const Variable& x, int64_t dim) {
  check(x.defined(), "[{}] x is missing", type);
  check(x.value.rank() == 3 && x.shape()[-1] == dim, "[{}] x has shape {}, expected (batch, length, {})", type,
        x.shape(), dim);
}

void check_state_use(std::string_view type, const Tape& tape, const MixerState* state, const Tensor& segments) {
  if (state == nullptr) return;
  check(!segments.defined(),
        "[{}] found segments beside a state, expected one of them: a state goes on with one document", type);
  check(tape.mode() != Tape::Mode::record,
        "[{}] found a state on a tape that records, expected a tape for inference: no gradient flows through a state",
        type);
}

Tensor saved_position(Context& context, int64_t position) {
  const Tensor at = Tensor::empty(context, {1}, DType::int32);
  write_values(context, at, {static_cast<double>(position)});
  return at;
}

int64_t loaded_position(std::string_view type, Context& context, const std::map<std::string, Tensor>& tensors) {
  const auto found = tensors.find("position");
  check(found != tensors.end(), "[{}] a state needs its position", type);
  const Tensor& at = found->second;
  check(at.defined() && at.dtype() == DType::int32 && at.numel() == 1,
        "[{}] the position of a state is {} {}, expected one int32", type, name(at.dtype()), at.shape());
  const auto position = static_cast<int64_t>(read_values(context, at)[0]);
  check(position >= 0, "[{}] the position of a state is {}, expected at least 0", type, position);
  return position;
}

}  // namespace heddle
