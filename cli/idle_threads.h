// How long threads of OpenMP wait for work before they sleep.
#pragma once

namespace heddle::cli {

// Starts the program again, with the same arguments, unless the user has chosen OMP_WAIT_POLICY or GOMP_SPINCOUNT: with
// GOMP_SPINCOUNT set to some ten microseconds. libgomp reads it when it is loaded, and without it a thread spins for
// milliseconds, in which another program that shares the processors could have worked. Call it first. Where the program
// cannot be started again, or was not compiled with OpenMP, it does nothing.
void limit_spinning_of_idle_threads(char** argv);

}  // namespace heddle::cli
