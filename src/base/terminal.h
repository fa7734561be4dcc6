// Where a program's output goes.
#pragma once

namespace pronghorn {

// Whether a file descriptor is a terminal, at which somebody may be. Under mpirun it counts as
// none: that gives each process a pseudo-terminal for standard output, wherever its own output
// goes.
bool is_terminal(int descriptor);

// Whether it is a terminal that obeys escape sequences: TERM says which one it is, and not "dumb".
bool terminal_obeys(int descriptor);

// Whether it shows colours and bold type. A variable NO_COLOR that is not empty turns these off.
bool terminal_shows_styles(int descriptor);

}  // namespace pronghorn
