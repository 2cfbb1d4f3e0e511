// A library that handles signals of the program that loads it, before main() begins.
#include <csignal>
#include <initializer_list>

namespace {

void do_nothing(int) {}

[[gnu::constructor]] void install() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, do_nothing);
}

}  // namespace
