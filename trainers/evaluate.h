// The loss of a model on validation data.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"
#include "trainers/data/dataset.h"
#include "trainers/model/language_model.h"
#include "trainers/parallel/processes.h"

namespace heddle {

struct Evaluation {
  double loss = 0.0;      // nats per target that counts
  double accuracy = 0.0;  // share of these targets that the model finds likeliest; NaN where the data has no answers
  int64_t targets = 0;    // that count
  int64_t bytes = 0;      // of text that these targets stand for; 0 where tokens are no text

  // Nats of all targets over their bytes, in bits; NaN where there are no bytes.
  double bits_per_byte() const;
};

// Evaluates on all validation sequences of the data set, batch size many at once. The loss is summed in double and does
// not depend on the batch size beyond the rounding of a matrix product. Changes nothing. Of several processes each
// takes a part of every batch, and all get the same result, which is that of one.
Evaluation evaluate(Context& context, const LanguageModel& model, const Dataset& data,
                    const Processes& processes = Processes());

}  // namespace heddle
