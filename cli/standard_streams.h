// stdin, stdout and stderr of a command.
#pragma once

namespace heddle::cli {

// Makes the three safe to use, whatever the caller left of them. A descriptor that is closed is taken by one to which
// nothing can be written (or from which nothing can be read), so that no file of ours gets its number. A pipe that
// nobody reads, and a file beyond the size that the process may write, are errors of the write, no signals.
void prepare_standard_streams();

// Flushes stdout. Throws Error when something that was written to it could not be: it was the result of the command.
void finish_stdout();

}  // namespace heddle::cli
