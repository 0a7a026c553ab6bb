#ifndef SANTA_CLIENT_EXAMPLES_SERVER_ATTENTION_H_
#define SANTA_CLIENT_EXAMPLES_SERVER_ATTENTION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "client/attention_client.h"
#include "client/examples/attention_provider.h"
#include "client/examples/kv_history.h"
#include "client/examples/llama_config.h"

namespace santa {

// What the answers of some steps needed, summed; from the server's statistics of each item.
struct ReadStatistics {
  int64_t value_rows_read = 0;
  int64_t visible_value_rows = 0;  // what EXACT reads
  int64_t kv_bytes_read = 0;
  int64_t dense_kv_bytes = 0;  // what EXACT reads
};

// Attention by an attention server: sequences live there, a layer's steps travel in one request.
class ServerAttention : public AttentionProvider {
 public:
  // FAILED_PRECONDITION when the server's layout is not the model's; otherwise as AttentionClient::Connect.
  static absl::StatusOr<std::unique_ptr<ServerAttention>> Connect(const std::string& target, const LlamaConfig& config);

  const v1::ServerInfo& info() const { return client_->info(); }
  ElementType dtype() const { return dtype_; }  // in which the server stores keys and values

  // Stores a prompt's keys and values on the server, as a new sequence.
  absl::StatusOr<int64_t> Upload(const KvHistory& history, uint64_t sampling_key);

  // How the steps that follow are answered; want_statistics is set in any case.
  void set_options(const v1::AttentionOptions& options);

  // Since the last call.
  ReadStatistics TakeStatistics();

  absl::StatusOr<int64_t> Fork(int64_t parent, uint64_t sampling_key) override;
  absl::Status Release(int64_t sequence) override;
  absl::Status Attend(int32_t layer, std::span<const AttentionStep> steps) override;

 private:
  ServerAttention(std::unique_ptr<AttentionClient> client, const LlamaConfig& config, ElementType dtype);
  absl::StatusOr<v1::AttendRequest> MakeRequest(int32_t layer, std::span<const AttentionStep> steps) const;
  absl::Status TakeAnswer(const v1::AttendResponse& response, std::span<const AttentionStep> steps);

  const LlamaConfig config_;
  const ElementType dtype_;
  std::unique_ptr<AttentionClient> client_;
  std::unique_ptr<AttendStream> stream_;
  v1::AttentionOptions options_;
  ReadStatistics statistics_;
  int64_t next_ = 0;
  std::map<int64_t, OwnedSequence> sequences_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_SERVER_ATTENTION_H_
