// The attention server's program: flags, signals, exit codes.
#ifndef SANTA_SERVER_SERVER_MAIN_H_
#define SANTA_SERVER_SERVER_MAIN_H_

#include <functional>
#include <memory>

#include "kernels/attention.h"

namespace santa {

// Runs until SIGTERM, SIGINT or a failed device; first thing in main. `wrap` may put something between the server and
// the backend that the flags ask for; empty: nothing.
//
// Exit codes: 0 after a drain, or --help; 1 when a port, the memory or the GPU cannot be had; 2 when a flag or the
// layout cannot be; 3 when the device failed: at start, when the self-test's answer is wrong, or later, after a drain
// that answers UNAVAILABLE. A new process may find it well again, so a supervisor should start one.
int ServerMain(int argc, char** argv,
               const std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)>& wrap = {});

}  // namespace santa

#endif  // SANTA_SERVER_SERVER_MAIN_H_
