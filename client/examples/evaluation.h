// What a language model loses and gains when its decode attention comes from the server.
//
// Every passage is prefilled once in this process and uploaded once. Each method then decodes forks of it: one is fed
// the passage's continuation (bits per byte), one each pass key's question (it then writes the answer). All of a fork's
// tokens, its own recent ones included, attend through the server. The same forks decoded with exact attention in this
// process, over keys and values rounded to the server's storage type, are what the methods are compared with.
#ifndef SANTA_CLIENT_EXAMPLES_EVALUATION_H_
#define SANTA_CLIENT_EXAMPLES_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/examples/llama_model.h"
#include "client/examples/passage.h"
#include "client/examples/script.h"
#include "client/examples/server_attention.h"

namespace santa {

struct MethodChoice {
  v1::Method method = v1::METHOD_EXACT;
  uint32_t samples = 0;      // drawn per query head; 0 for EXACT and BERNOULLI_QK
  uint32_t score_draws = 0;  // of a server with feature-major keys
};

// Sums over the passages so far.
struct MethodScore {
  std::string name;  // "LOCAL", or the method's
  uint32_t samples = 0;
  double bits = 0;
  double squared_differences = 0;  // of a byte's bits from exact local attention's
  int64_t scored_bytes = 0;
  int64_t keys_right = 0;
  int64_t keys_asked = 0;
  int64_t answers_as_local = 0;         // answers equal to exact local attention's, right or wrong
  double largest_logit_difference = 0;  // from exact local attention, over the continuations
  int64_t steps = 0;                    // tokens decoded side by side, and the time that they took
  double seconds = 0;
  std::string generated;  // by one sequence alone, after the first passage's prompt
  double generate_seconds = 0;
  ReadStatistics reads;  // none for LOCAL

  double bits_per_byte() const { return bits / static_cast<double>(scored_bytes); }
  // How far bits per byte lie above those of `local`, relative to them, and the standard error of that over the bytes.
  double relative_to(const MethodScore& local) const { return bits / local.bits - 1; }
  double relative_standard_error(const MethodScore& local) const;
  double tokens_per_second() const { return static_cast<double>(steps) / seconds; }
  double generated_per_second() const { return static_cast<double>(generated.size()) / generate_seconds; }
  double value_row_share() const { return static_cast<double>(reads.value_rows_read) / reads.visible_value_rows; }
  double kv_byte_share() const { return static_cast<double>(reads.kv_bytes_read) / reads.dense_kv_bytes; }
};

struct EvaluationOptions {
  std::vector<MethodChoice> methods;
  uint64_t seed = 1;     // of every draw, with each sequence's sampling key
  int64_t generate = 0;  // bytes to write after the first passage's prompt
  std::function<void(const std::string&)> progress = [](const std::string&) {};
};

class Evaluation {
 public:
  // Model and server outlive it.
  Evaluation(const LlamaModel* model, ServerAttention* server, EvaluationOptions options);

  absl::Status AddPassage(const Passage& passage);

  const MethodScore& local() const { return local_; }
  const std::vector<MethodScore>& methods() const { return scores_; }  // in the order of the options

 private:
  absl::StatusOr<std::vector<ScriptResult>> Run(const Passage& passage, AttentionProvider& attention, int64_t parent,
                                                std::span<const Script> scripts, int64_t first_byte,
                                                MethodScore& score) const;

  const LlamaModel* model_;
  ServerAttention* server_;
  EvaluationOptions options_;
  MethodScore local_;
  std::vector<MethodScore> scores_;
  int64_t passages_ = 0;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_EVALUATION_H_
