// Values by name, as the inputs and the outputs of an operator.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"

namespace heddle {

// A std::map whose at() says what it looked for.
template <class T>
class Named : public std::map<std::string, T> {
 public:
  using std::map<std::string, T>::map;

  // Throws Error "found no tensor 'gate', only weight, x" when there is none of that name.
  const T& at(const std::string& name) const {
    const auto found = this->find(name);
    if (found != this->end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [known, value] : *this) names.push_back(known);
    heddle::fail("found no tensor '{}', only {}", name, names.empty() ? "an empty list" : join_names(names));
  }
  T& at(const std::string& name) { return const_cast<T&>(std::as_const(*this).at(name)); }
};

}  // namespace heddle
