// The table of cases: every operator with its specification. tests/layers/operators_test.cc runs all of it.
// Adding an operator: one header in tests/cases, one line here.
#pragma once

#include "tests/cases/dense.h"
#include "tests/cases/linear_attention.h"
#include "tests/cases/lrpe.h"
#include "tests/cases/lrpe_cosine.h"
#include "tests/cases/norm.h"

namespace heddle::test {

inline const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> all = [] {
    std::vector<OpCase> cases;
    for (const auto& family : {norm_cases, lrpe_rotate_cases, lrpe_cosine_cases, dense_cases, linear_attention_cases}) {
      for (OpCase& next : family()) cases.push_back(std::move(next));
    }
    return cases;
  }();
  return all;
}

}  // namespace heddle::test
