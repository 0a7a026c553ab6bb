#include "client/examples/server_attention.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace santa {
namespace {

constexpr double kLeaseSeconds = 3600;  // a prompt waits while its forks decode, and while the next one is prefilled
constexpr absl::Duration kStepTimeout = absl::Seconds(60);
constexpr absl::Duration kUploadTimeout = absl::Minutes(5);
constexpr int64_t kUploadTokens = 4096;  // read out of the history at a time

absl::StatusOr<ElementType> FromLayout(v1::DataType dtype) {
  for (const ElementType type : {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16}) {
    if (ToWire(type) == dtype) return type;
  }
  return absl::FailedPreconditionError(absl::StrCat("the server stores keys in a type unknown here: ", dtype));
}

absl::Status CheckLayout(const v1::KvLayout& layout, const LlamaConfig& config) {
  if (layout.num_layers() == config.num_layers && layout.num_query_heads() == config.num_query_heads &&
      layout.num_kv_heads() == config.num_kv_heads && layout.head_dim() == config.head_dim) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "the server's layout (layers, query heads, key/value heads, head dimension) is ", layout.num_layers(), ", ",
      layout.num_query_heads(), ", ", layout.num_kv_heads(), ", ", layout.head_dim(), "; the model's is ",
      config.num_layers, ", ", config.num_query_heads, ", ", config.num_kv_heads, ", ", config.head_dim));
}

}  // namespace

ServerAttention::ServerAttention(std::unique_ptr<AttentionClient> client, const LlamaConfig& config, ElementType dtype)
    : config_(config), dtype_(dtype), client_(std::move(client)), stream_(client_->OpenAttendStream()) {
  set_options({});
}

absl::StatusOr<std::unique_ptr<ServerAttention>> ServerAttention::Connect(const std::string& target,
                                                                          const LlamaConfig& config) {
  absl::StatusOr<std::unique_ptr<AttentionClient>> client = AttentionClient::Connect(target);
  if (!client.ok()) return client.status();
  const v1::KvLayout& layout = (*client)->info().layout();
  if (absl::Status status = CheckLayout(layout, config); !status.ok()) return status;
  const absl::StatusOr<ElementType> dtype = FromLayout(layout.dtype());
  if (!dtype.ok()) return dtype.status();
  return std::unique_ptr<ServerAttention>(new ServerAttention(*std::move(client), config, *dtype));
}

void ServerAttention::set_options(const v1::AttentionOptions& options) {
  options_ = options;
  options_.set_want_statistics(true);
}

ReadStatistics ServerAttention::TakeStatistics() { return std::exchange(statistics_, {}); }

absl::StatusOr<int64_t> ServerAttention::Upload(const KvHistory& history, uint64_t sampling_key) {
  v1::CreateSequenceRequest request;
  request.set_lease_seconds(std::min(kLeaseSeconds, info().limits().max_lease_seconds()));
  request.set_sampling_key(sampling_key);
  absl::StatusOr<OwnedSequence> sequence = OwnedSequence::Create(*client_, request);
  if (!sequence.ok()) return sequence.status();
  const int64_t kv_size = config_.kv_size();
  std::vector<float> k, v;
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    for (int64_t begin = 0; begin < history.length(layer); begin += kUploadTokens) {
      const int64_t n = std::min(kUploadTokens, history.length(layer) - begin);
      k.resize(n * kv_size);
      v.resize(n * kv_size);
      history.Read(layer, begin, begin + n, k.data(), v.data());
      const std::vector<int64_t> shape = {n, config_.num_kv_heads, config_.head_dim};
      const Tensor keys = FromFloats(k, shape, dtype_), values = FromFloats(v, shape, dtype_);
      const KvChunk chunk = {
          .layer = static_cast<uint32_t>(layer), .position = begin, .k = keys.view(), .v = values.view()};
      const absl::StatusOr<v1::Sequence> stored =
          client_->AppendKv(sequence->handle(), chunk, absl::Now() + kUploadTimeout);
      if (!stored.ok()) return stored.status();
    }
  }
  sequences_.emplace(next_, *std::move(sequence));
  return next_++;
}

absl::StatusOr<int64_t> ServerAttention::Fork(int64_t parent, uint64_t sampling_key) {
  const auto found = sequences_.find(parent);
  if (found == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", parent));
  v1::ForkSequenceRequest request;
  *request.mutable_parent() = found->second.handle();
  request.set_sampling_key(sampling_key);
  absl::StatusOr<v1::Sequence> sequence = client_->ForkSequence(request);
  if (!sequence.ok()) return sequence.status();
  sequences_.emplace(next_, OwnedSequence(client_.get(), *std::move(sequence)));
  return next_++;
}

absl::Status ServerAttention::Release(int64_t sequence) {
  if (sequences_.erase(sequence) == 0) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  return absl::OkStatus();
}

absl::Status ServerAttention::Attend(int32_t layer, std::span<const AttentionStep> steps) {
  // One request, or as few as the server's limit allows, all in flight together.
  const size_t most = std::max(1, info().limits().max_items_per_request());
  std::vector<std::future<AttendStream::Result>> answers;
  for (size_t begin = 0; begin < steps.size(); begin += most) {
    absl::StatusOr<v1::AttendRequest> request =
        MakeRequest(layer, steps.subspan(begin, std::min(most, steps.size() - begin)));
    if (!request.ok()) return request.status();
    answers.push_back(stream_->Submit(*std::move(request), absl::Now() + kStepTimeout));
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    const AttendStream::Result response = answers[i].get();
    if (!response.ok()) return response.status();
    absl::Status status = TakeAnswer(*response, steps.subspan(i * most, std::min(most, steps.size() - i * most)));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::AttendRequest> ServerAttention::MakeRequest(int32_t layer,
                                                               std::span<const AttentionStep> steps) const {
  v1::AttendRequest request;
  request.set_layer(layer);
  const auto tensor = [&](const float* values, int32_t heads, ElementType type) {
    const size_t size = static_cast<size_t>(heads) * config_.head_dim;
    return ToWire(FromFloats({values, size}, {1, heads, config_.head_dim}, type).view());
  };
  for (const AttentionStep& step : steps) {
    const auto found = sequences_.find(step.sequence);
    if (found == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", step.sequence));
    v1::AttendItem& item = *request.add_items();
    *item.mutable_handle() = found->second.handle();
    item.set_position(step.position);
    *item.mutable_q() = tensor(step.q, config_.num_query_heads, ElementType::kFloat32);
    *item.mutable_k() = tensor(step.k, config_.num_kv_heads, dtype_);
    *item.mutable_v() = tensor(step.v, config_.num_kv_heads, dtype_);
    *item.mutable_options() = options_;
  }
  return request;
}

absl::Status ServerAttention::TakeAnswer(const v1::AttendResponse& response, std::span<const AttentionStep> steps) {
  if (response.results_size() != steps.size()) {
    return absl::InternalError(absl::StrCat(response.results_size(), " results for ", steps.size(), " items"));
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const v1::AttendResult& result = response.results(static_cast<int>(i));
    if (absl::Status status = ToStatus(result.status()); !status.ok()) return status;
    const absl::StatusOr<std::vector<float>> o = ToFloats(result.o());
    if (!o.ok()) return o.status();
    if (o->size() != config_.query_size()) {
      return absl::InternalError(absl::StrCat("an output of ", o->size(), " elements, not ", config_.query_size()));
    }
    std::copy(o->begin(), o->end(), steps[i].o);
    const v1::AttendStatistics& s = result.statistics();
    statistics_.value_rows_read += s.value_rows_read();
    statistics_.visible_value_rows += s.visible_tokens() * config_.num_kv_heads;
    statistics_.kv_bytes_read += s.kv_bytes_read();
    statistics_.dense_kv_bytes += s.dense_kv_bytes();
  }
  return absl::OkStatus();
}

}  // namespace santa
