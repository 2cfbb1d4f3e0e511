// The text that trainer.sample asks for.                                             docs/config.md#trainersample
#pragma once

#include <functional>
#include <string>

#include "trainers/data/tokenizer.h"
#include "trainers/model/language_model.h"
#include "trainers/train_config.h"

namespace heddle {

// The prompt and what the model writes after it. config.trainer.sample is there. `stop_requested` is asked for each
// token.
std::string sample_text(Context& context, const LanguageModel& model, const Tokenizer& tokenizer,
                        const TrainConfig& config, const std::function<bool()>& stop_requested);

}  // namespace heddle
