#include "core/config/nearest_name.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace heddle {
namespace {

// Optimal string alignment distance (Levenshtein plus swaps of neighbours).
std::size_t edit_distance(std::string_view a, std::string_view b) {
  const std::size_t columns = b.size() + 1;
  std::vector<std::size_t> before(columns), previous(columns), row(columns);
  for (std::size_t j = 0; j < columns; ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, previous);
    std::swap(previous, row);
    row[0] = i;
    for (std::size_t j = 1; j < columns; ++j) {
      const std::size_t replace = previous[j - 1] + (a[i - 1] != b[j - 1]);
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
  }
  return row.back();
}

bool is_leading_word(std::string_view word, std::string_view name) {
  return word.size() >= 2 && name.size() > word.size() && name.starts_with(word) && name[word.size()] == '_';
}

}  // namespace

std::string nearest_name(std::string_view typed, std::span<const std::string> names) {
  std::string best;
  std::size_t best_distance = 0;
  for (const std::string& name : names) {
    std::size_t distance = edit_distance(typed, name);
    const std::size_t length = std::max(typed.size(), name.size());
    std::size_t allowed = std::max<std::size_t>(1, length / 3);
    if (is_leading_word(typed, name) || is_leading_word(name, typed)) {
      distance = std::min<std::size_t>(distance, 2);
      allowed = std::max<std::size_t>(allowed, 2);
    }
    if (distance > allowed || distance >= length) continue;
    if (best.empty() || distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view typed, std::span<const std::string> names) {
  const std::string best = nearest_name(typed, names);
  return best.empty() ? "" : "; did you mean '" + best + "'?";
}

std::string join_names(std::span<const std::string> names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

}  // namespace heddle
