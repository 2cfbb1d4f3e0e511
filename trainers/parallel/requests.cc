#include "trainers/parallel/requests.h"

#include <string>

namespace heddle {

void Requests::exchange() {
  if (is_alone()) return;
  const auto digit = [](bool condition) { return condition ? '1' : '0'; };
  const std::string mine = {digit(stop_()), digit(checkpoint_()), digit(is_time_over_())};
  asked_ = Asked();
  for (const std::string& of_process : processes_.gather(mine)) {
    asked_.stop |= of_process[0] == '1';
    asked_.checkpoint |= of_process[1] == '1';
    asked_.time_over |= of_process[2] == '1';
  }
}

}  // namespace heddle
