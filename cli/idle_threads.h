// How long threads of OpenMP wait for work before they sleep.
#pragma once

namespace heddle::cli {

// Restarts the program (execv, the same arguments) with GOMP_SPINCOUNT=10000, unless the user has set OMP_WAIT_POLICY
// or GOMP_SPINCOUNT. libgomp reads the variable when it is loaded, so it cannot be set later. With libgomp's own 300000
// rounds an idle thread spins for milliseconds, in which another program could use the processor; with 10000 it sleeps
// after a few tenths of a millisecond. Call this first in main(). It does nothing where the program cannot be restarted
// or was built without OpenMP.
void limit_spinning_of_idle_threads(char** argv);

}  // namespace heddle::cli
