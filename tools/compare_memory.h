// Whether what a comparison measures can be held, counted on device meta before anything is measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/runtime/context.h"
#include "tools/compare.h"
#include "trainers/model/language_model.h"

namespace heddle {

// Tokens of a context that are read at once.
inline constexpr int64_t kContextPart = 1024;

// The config whose steps are timed at a length: they have as many tokens as its own, or one sequence.
TrainConfig at_length(TrainConfig config, int64_t length);

// What the state of all mixers holds.
size_t bytes_of(Context& context, const ModelState& state);

// Throws UsageError when a step at one of options.lengths, or the state after one of options.contexts, takes more
// memory than the device has.
void check_memory(const Context& context, std::span<const CompareSubject> subjects, const CompareOptions& options);

}  // namespace heddle
