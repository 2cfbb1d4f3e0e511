#include "trainers/profile/profile_config.h"

#include <fmt/format.h>

#include <optional>
#include <vector>

#include "core/config/config_fields.h"

namespace heddle {

void describe(ConfigFields& fields, ProfileConfig& profile, std::int64_t steps) {
  std::vector<std::int64_t> ends{profile.first, profile.last};
  fields.required("steps", ends, Range::positive());
  if (ends.size() != 2) {
    fields.fail("steps", fmt::format("found a list of {}, expected the first step and the last one", ends.size()));
  }
  profile.first = ends[0];
  profile.last = ends[1];
  if (fields.reads() && (profile.first > profile.last || profile.last > steps)) {
    fields.fail("steps", fmt::format("found [{}, {}], expected the first step and one that is not before it, at most "
                                     "trainer.steps ({})",
                                     profile.first, profile.last, steps));
  }
  std::optional<std::string> trace;
  if (!profile.trace.empty()) trace = profile.trace;
  fields.optional("trace", trace);
  if (trace) fields.check_path("trace", *trace, "a file");
  profile.trace = trace.value_or("");
}

}  // namespace heddle
