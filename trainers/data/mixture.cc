#include "trainers/data/mixture.h"

#include <cmath>

#include "trainers/data/data_config.h"

namespace heddle {
namespace {

// floor(n odds / 2^32) without the overflow of n odds.
uint64_t share_of(uint64_t n, uint64_t odds) { return (n >> 32) * odds + ((n & (kCertain - 1)) * odds >> 32); }

}  // namespace

std::vector<uint64_t> source_odds(std::span<const DataSource> sources) {
  std::vector<uint64_t> odds(sources.size());
  double rest = 0.0;  // the weight of this source and of those after it, as a multiple of the largest weight
  double largest = 0.0;
  for (const DataSource& source : sources) largest = std::fmax(largest, source.weight);
  for (size_t i = sources.size(); i-- > 0;) {
    const double weight = sources[i].weight / largest;
    rest += weight;
    if (rest == 0.0) continue;
    odds[i] = static_cast<uint64_t>(std::llround(weight / rest * static_cast<double>(kCertain)));
  }
  for (size_t i = 0; i + 1 < sources.size(); ++i) {
    if (odds[i] == kCertain) odds[i + 1] = 0;
  }
  return odds;
}

SourceSequence source_of(int64_t index, std::span<const uint64_t> odds) {
  auto n = static_cast<uint64_t>(index);
  for (size_t source = 0; source + 1 < odds.size(); ++source) {
    const uint64_t taken = share_of(n, odds[source]);
    if (share_of(n + 1, odds[source]) > taken) return {source, static_cast<int64_t>(taken)};
    n -= taken;
  }
  return {odds.size() - 1, static_cast<int64_t>(n)};
}

}  // namespace heddle
