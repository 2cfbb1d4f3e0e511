// Finds where the first number that is not finite comes from. docs/training.md#numbers-that-are-not-finite
#pragma once

#include <optional>
#include <string>

#include "core/autograd/tape.h"
#include "trainers/model/language_model.h"

namespace heddle {

// The first number of the tensor that is not finite, row-major; any strides. Large tensors are read part by part.
std::optional<double> first_non_finite(Context& context, const Tensor& tensor);

// The operator or part of a model that made the first number that is not finite. Ends the computation that was watched.
struct FoundNonFinite {
  std::string what;  // "blocks.3.mixer.norm made the first non-finite number (forward, inf) from finite inputs"
};

// From now on every operator that is recorded on the tape, and what its node does in backward, is looked at; the first
// one with a number that is not finite throws FoundNonFinite.
void watch_for_non_finite(Tape& tape);
// The same for the output of every part of a model: also of parts whose operators are not recorded, because they are
// recomputed in backward.
LanguageModel::Observer non_finite_observer(Context& context);

}  // namespace heddle
