// What attention_bench is asked to do.
#ifndef SANTA_CLIENT_BENCH_LOAD_OPTIONS_H_
#define SANTA_CLIENT_BENCH_LOAD_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/bench/echo_server.h"
#include "client/bench/lengths.h"
#include "client/tensor.h"
#include "client/wire.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::bench {

struct LoadOptions {
  std::string server = "127.0.0.1:50051";  // HOST:PORT or another gRPC target
  std::string metrics = {};                // HOST:PORT of the server's /metrics; empty: it is not asked

  int64_t clients = 1;                    // connections, each with a stream and sequences of its own
  int64_t sequences = 1;                  // of each client; every step attends in all of them, in one message
  Lengths tokens = Lengths::Fixed(1024);  // stored in each sequence before the load begins
  int64_t layers = 1;                     // steps go through the server's layers 0 .. layers - 1 in turn

  v1::Method method = v1::METHOD_EXACT;
  int64_t samples = 0;  // value rows drawn for each query head, S; of a sampled method: 0 is a sixteenth of the tokens
  int64_t score_draws = 0;                     // R, of a server with feature-major keys
  ElementType dtype = ElementType::kBFloat16;  // of q, and of the appended k and v
  bool append = false;                         // every step also appends its token's k and v
  bool share_memory = true;                    // with a server on this machine, as AttendStreamOptions has it

  bool in_place = false;  // steps are placed (AttendStream::Place), and answers read where they lie

  // Of the clients: these upload prompts, one after another, instead of decoding.
  int64_t prefill_clients = 0;
  int64_t prefill_chunk = 512;  // tokens of a prompt in one message, of one layer

  // Messages of the same size to a server that only answers them, in turn with the load.
  std::optional<EchoKind> echo = {};
  std::string echo_server = {};  // HOST:PORT of a --serve_echo; empty: a process of its own on this machine
  std::string serve_echo = {};   // be that server, on this HOST:PORT, and nothing else

  int64_t in_flight = 1;  // closed loop: unanswered steps of each client
  double rate = 0;        // > 0: open loop, steps that arrive a second over all clients (Poisson); 0: closed loop
  double warmup_seconds = 1;
  double seconds = 10;  // measured

  int64_t seed = 1;  // of the tensors, the draws and the arrivals
  bool json = false;
  bool help = false;

  // Of the sequence with this index over all clients.
  int64_t TokensOf(int64_t sequence) const { return tokens.Of(sequence, static_cast<uint64_t>(seed)); }
  uint32_t SampleCountOf(int64_t tokens_stored) const;  // as a step carries it; 0 for EXACT
  int64_t decode_clients() const { return clients - prefill_clients; }
};

// Arguments without the program's name, each --flag=value, --flag value, or --flag of the boolean ones.
// INVALID_ARGUMENT: a sentence that names flag and value.
absl::StatusOr<LoadOptions> ParseLoadOptions(std::span<const std::string_view> arguments);

// INVALID_ARGUMENT, a sentence, for what this server cannot take: a layer, method or length that it does not have.
absl::Status CheckAgainst(const v1::ServerInfo& server, const LoadOptions& options);

// What --help prints.
std::string LoadUsage();

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_OPTIONS_H_
