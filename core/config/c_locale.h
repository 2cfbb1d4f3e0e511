// The C locale, in which the numbers of files are written. A program that links heddle may have set another one, whose
// decimal point is a comma.
#pragma once

#include <locale.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif

namespace heddle {

// For strtod_l() and strtof_l().
inline locale_t c_locale() {
  static const locale_t locale = newlocale(LC_ALL_MASK, "C", nullptr);
  return locale;
}

}  // namespace heddle
