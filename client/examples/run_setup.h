// What the demo and the accuracy measurement share: flags that say where things are, and the cast of a run.
#ifndef SANTA_CLIENT_EXAMPLES_RUN_SETUP_H_
#define SANTA_CLIENT_EXAMPLES_RUN_SETUP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/examples/evaluation.h"
#include "client/examples/llama_model.h"
#include "client/examples/passage.h"
#include "client/examples/server_attention.h"
#include "client/examples/server_process.h"
#include "client/examples/thread_pool.h"

namespace santa {

// `path` itself, or where Bazel laid it for this program.
std::string FindFile(const std::string& path);

// Each sampled method with each sample count and number of score draws, BERNOULLI_QK with each of the latter, EXACT
// once. INVALID_ARGUMENT lists the names of methods.
absl::StatusOr<std::vector<MethodChoice>> ParseMethods(const std::vector<std::string>& names,
                                                       const std::vector<uint32_t>& samples,
                                                       const std::vector<uint32_t>& score_draws = {0});

// Passages of the named texts of --heldout (file names without .txt), or of all of them in order of their names. Text i
// gets the seed options.seed + i. INVALID_ARGUMENT lists the names.
absl::StatusOr<std::vector<Passage>> LoadPassages(const std::vector<std::string>& names, const PassageOptions& options);

// A server with room for one passage of `context` bytes and its forks, the model of --model, and a connection.
class RunSetup {
 public:
  // From the main thread, before there are others. `forks`: of the passage; each grows by `fork_tokens` at most.
  static absl::StatusOr<std::unique_ptr<RunSetup>> Start(int64_t context, int64_t forks, int64_t fork_tokens);

  const LlamaModel& model() const { return *model_; }
  ServerAttention& server() { return *server_; }
  const ServerProcess& process() const { return *process_; }

  // Hangs up and stops the server.
  absl::Status Stop();

 private:
  RunSetup() = default;

  // In the order of construction; the server process outlives the connection.
  std::unique_ptr<ServerProcess> process_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<ServerAttention> server_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_RUN_SETUP_H_
