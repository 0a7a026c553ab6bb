// What attention_cli does, apart from reading its flags.
#ifndef SANTA_CLIENT_CLI_H_
#define SANTA_CLIENT_CLI_H_

#include <cstdint>
#include <ostream>
#include <span>
#include <string>

#include "absl/time/time.h"

namespace santa {

struct CliOptions {
  std::string server;
  bool tls = false;
  std::string root_certificates;  // a PEM file; empty: the system's
  std::string token_file;         // holds the bearer token; empty: none
  absl::Duration timeout = absl::Seconds(60);

  // Of `attend`:
  std::string file;
  std::string out;  // empty: nothing is written
  uint32_t layer = 0;
  std::string method = "EXACT";
  uint32_t samples = 0;             // 0 with a method that draws values and no target: a sixteenth of the tokens
  float target_relative_error = 0;  // COORDINATED and SKETCHED, in place of samples
  uint32_t score_draws = 0;         // of a server with feature-major keys
  uint64_t seed = 0;
  float scale = 0;
  uint32_t window = 0;
  float soft_cap = 0;
  bool compare = false;
};

// Exit codes.
inline constexpr int kCliOk = 0;
inline constexpr int kCliServerError = 1;  // the server cannot be reached or refuses
inline constexpr int kCliUsageError = 2;   // command, flag or file: nothing was asked of the server, or not all of it

inline constexpr char kCliUsage[] = R"(A client of the SANTA attention server.

  attention_cli [--server=HOST:PORT] info
      What the server is: layout of its KV cache, methods, limits, free pages.

  attention_cli [--server=HOST:PORT] sequences
      The sequences that it holds for you.

  attention_cli [--server=HOST:PORT] attend --file=FILE.safetensors [--method=S2ANTA_FLASH --samples=N] [--compare]
      Stores the file's keys and values in a sequence of its own, attends with its queries, prints lse and statistics,
      and releases the sequence. The file holds `q` [H, D] or [1, H, D], `k` and `v` [tokens, H_kv, D], and if you like
      `sinks` [H], in F32, BF16 or F16; for several layers `layer.N.q` and so on. The query's position is the last
      token's. --out=FILE.safetensors takes `o` [1, H, D] and `lse` [H]. --compare asks for the exact answer too and
      prints the relative error |o - o_exact| / |o_exact| (Euclidean norms).

Exit codes: 0 done, 1 the server cannot be reached or refuses, 2 wrong command, flag or file.)";

// `arguments` are the command and what follows it. Returns an exit code.
int RunCli(const CliOptions& options, std::span<const std::string> arguments, std::ostream& out, std::ostream& err);

}  // namespace santa

#endif  // SANTA_CLIENT_CLI_H_
