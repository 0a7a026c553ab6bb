#include "client/testing/fake_attention_server.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/tensor.h"
#include "client/wire.h"
#include "proto/santa/attention/v1/attention.grpc.pb.h"

namespace santa::client_testing {
namespace {

using Clock = std::chrono::steady_clock;
using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;

constexpr int kLayers = 2;
constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 8;
constexpr int kMaxMessageBytes = 64 << 10;
constexpr int kListPage = 2;  // small, so that clients must turn pages
// What a sampled method's answer is multiplied by, so that it differs from the exact one.
constexpr float kSampledFactor = 1.0f + 1.0f / 256;

struct StoredSequence {
  v1::SequenceHandle handle;
  std::array<std::vector<std::string>, kLayers> tokens;

  v1::Sequence Describe() const {
    v1::Sequence sequence;
    *sequence.mutable_handle() = handle;
    for (const auto& layer : tokens) sequence.add_lengths(static_cast<int64_t>(layer.size()));
    sequence.set_num_tokens(*std::min_element(sequence.lengths().begin(), sequence.lengths().end()));
    sequence.set_lease_seconds(60);
    sequence.set_sampling_key(handle.id());
    sequence.set_num_pages((sequence.num_tokens() + 15) / 16);
    return sequence;
  }
};

std::vector<float> Floats(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// The answer of one query over the first `visible` tokens.
void Attend(const std::vector<std::string>& tokens, int64_t visible, const v1::AttendItem& item,
            v1::AttendResult& result) {
  const std::vector<float> q = ToFloats(item.q()).value_or(std::vector<float>());
  if (q.size() != kQueryHeads * kHeadDim) return result.mutable_status()->set_code(StatusCode::INVALID_ARGUMENT);
  std::vector<float> o(q.size());
  std::vector<std::vector<float>> rows;  // of each token: k, then v
  for (int64_t i = 0; i < visible; ++i) rows.push_back(Floats(tokens[i]));
  for (int h = 0; h < kQueryHeads; ++h) {
    const int k_offset = h / (kQueryHeads / kKvHeads) * kHeadDim;
    const int v_offset = k_offset + kKvHeads * kHeadDim;
    double sum = 0;
    std::vector<double> weighted(kHeadDim);
    for (const std::vector<float>& row : rows) {
      double score = 0;
      for (int d = 0; d < kHeadDim; ++d) score += double{q[h * kHeadDim + d]} * row[k_offset + d];
      const double weight = std::exp(score / std::sqrt(double{kHeadDim}));
      sum += weight;
      for (int d = 0; d < kHeadDim; ++d) weighted[d] += weight * row[v_offset + d];
    }
    for (int d = 0; d < kHeadDim; ++d) o[h * kHeadDim + d] = static_cast<float>(weighted[d] / sum);
    result.add_lse(static_cast<float>(std::log(sum)));
  }
  if (item.options().method() > v1::METHOD_EXACT) {
    for (float& value : o) value *= kSampledFactor;
  }
  *result.mutable_o() = ToWire(FromFloats(o, {1, kQueryHeads, kHeadDim}, FromWire(item.q())->type).view());
  if (item.options().want_statistics()) {
    result.mutable_statistics()->set_visible_tokens(visible);
    result.mutable_statistics()->set_value_rows_read(visible * kKvHeads);
    result.mutable_statistics()->set_kv_bytes_read(visible * static_cast<int64_t>(tokens[0].size()));
    result.mutable_statistics()->set_dense_kv_bytes(visible * static_cast<int64_t>(tokens[0].size()));
    result.mutable_statistics()->set_batch_items(1);
  }
}

}  // namespace

class FakeAttentionServer::Service final : public v1::AttentionService::Service {
 public:
  explicit Service(const Faults& faults) : faults_(faults) {}

  void Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(this);
    stopping_ = false;
    server_ = builder.BuildAndStart();
  }

  void Stop() {
    stopping_ = true;
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  int port() const { return port_; }

  Status GetServerInfo(ServerContext* context, const v1::GetServerInfoRequest*, v1::ServerInfo* info) override {
    return Unary(*context, [&] {
      info->set_version("fake");
      info->set_backend("fake");
      info->set_device("test double");
      v1::KvLayout& layout = *info->mutable_layout();
      layout.set_num_layers(kLayers);
      layout.set_num_query_heads(kQueryHeads);
      layout.set_num_kv_heads(kKvHeads);
      layout.set_head_dim(kHeadDim);
      layout.set_dtype(v1::DATA_TYPE_FLOAT32);
      layout.set_page_size(16);
      info->add_methods(v1::METHOD_EXACT);
      info->add_methods(v1::METHOD_S2ANTA_FLASH);
      info->mutable_limits()->set_max_message_bytes(kMaxMessageBytes);
      info->mutable_limits()->set_max_items_per_request(16);
      info->set_num_sequences(static_cast<int64_t>(sequences_.size()));
      return Status::OK;
    });
  }

  Status CreateSequence(ServerContext* context, const v1::CreateSequenceRequest*, v1::Sequence* sequence) override {
    return Unary(*context, [&] {
      *sequence = Insert().Describe();
      return Status::OK;
    });
  }

  Status ForkSequence(ServerContext* context, const v1::ForkSequenceRequest* request, v1::Sequence* child) override {
    return Unary(*context, [&] {
      const StoredSequence* parent = Find(request->parent());
      if (parent == nullptr) return NotFound();
      StoredSequence copy = *parent;
      StoredSequence& inserted = Insert();
      copy.handle = inserted.handle;
      const int64_t tokens =
          request->has_num_tokens() ? request->num_tokens() : static_cast<int64_t>(parent->Describe().num_tokens());
      for (auto& layer : copy.tokens) layer.resize(std::min<size_t>(layer.size(), tokens));
      inserted = std::move(copy);
      *child = inserted.Describe();
      return Status::OK;
    });
  }

  Status TruncateSequence(ServerContext* context, const v1::TruncateSequenceRequest* request,
                          v1::Sequence* sequence) override {
    return Unary(*context, [&] {
      StoredSequence* found = Find(request->handle());
      if (found == nullptr) return NotFound();
      for (auto& layer : found->tokens) layer.resize(std::min<size_t>(layer.size(), request->num_tokens()));
      *sequence = found->Describe();
      return Status::OK;
    });
  }

  Status ReleaseSequence(ServerContext* context, const v1::ReleaseSequenceRequest* request,
                         v1::ReleaseSequenceResponse*) override {
    return Unary(*context, [&] {
      if (Find(request->handle()) == nullptr) return NotFound();
      sequences_.erase(request->handle().id());
      return Status::OK;
    });
  }

  Status GetSequence(ServerContext* context, const v1::GetSequenceRequest* request, v1::Sequence* sequence) override {
    return Unary(*context, [&] {
      const StoredSequence* found = Find(request->handle());
      if (found == nullptr) return NotFound();
      *sequence = found->Describe();
      return Status::OK;
    });
  }

  Status ListSequences(ServerContext* context, const v1::ListSequencesRequest* request,
                       v1::ListSequencesResponse* response) override {
    return Unary(*context, [&] {
      uint64_t after = 0;
      if (!request->page_token().empty()) after = std::stoull(request->page_token());
      auto next = sequences_.upper_bound(after);
      for (; next != sequences_.end() && response->sequences_size() < kListPage; ++next) {
        *response->add_sequences() = next->second.Describe();
      }
      if (next != sequences_.end()) {
        response->set_next_page_token(absl::StrCat(response->sequences(kListPage - 1).handle().id()));
      }
      return Status::OK;
    });
  }

  Status AppendKv(ServerContext* context, grpc::ServerReader<v1::AppendKvRequest>* reader,
                  v1::AppendKvResponse* response) override {
    if (Status status = Authenticate(*context); !status.ok()) return status;
    const Break planned = PlanBreak(append_streams_, faults().broken_append_streams, faults().messages_before_break);
    v1::AppendKvRequest request;
    v1::SequenceHandle handle;
    for (int count = 0; reader->Read(&request); ++count) {
      const bool breaks = count == planned.after;
      if (breaks && !planned.take_first) return {StatusCode::UNAVAILABLE, "injected"};
      const std::lock_guard lock(mutex_);
      ++append_messages_;
      largest_message_ = std::max<int64_t>(largest_message_, static_cast<int64_t>(request.ByteSizeLong()));
      handle = request.handle();
      StoredSequence* sequence = Find(handle);
      if (sequence == nullptr) return NotFound();
      Status status = Append(*sequence, request.layer(), request.position(), request.k(), request.v());
      if (!status.ok()) return status;
      if (breaks) return {StatusCode::UNAVAILABLE, "injected"};
      *response->mutable_sequence() = sequence->Describe();
    }
    return Status::OK;
  }

  Status Attend(ServerContext* context,
                grpc::ServerReaderWriter<v1::AttendResponse, v1::AttendRequest>* stream) override;
  Status AttendShared(ServerContext* context,
                      grpc::ServerReaderWriter<v1::AttendSharedResponse, v1::AttendSharedRequest>* stream) override;

  // Test inspection.
  template <typename Function>
  auto Locked(Function function) const {
    const std::lock_guard lock(mutex_);
    return function(*this);
  }

  Faults faults() const {
    const std::lock_guard lock(mutex_);
    return faults_;
  }

  void set_faults(const Faults& faults) {
    const std::lock_guard lock(mutex_);
    faults_ = faults;
    attend_streams_ = append_streams_ = unary_calls_ = 0;
  }

  std::vector<std::string> Tokens(const v1::SequenceHandle& handle, uint32_t layer) const {
    const std::lock_guard lock(mutex_);
    const auto found = sequences_.find(handle.id());
    return found == sequences_.end() ? std::vector<std::string>() : found->second.tokens[layer];
  }

  mutable std::mutex mutex_;
  Faults faults_;
  std::map<uint64_t, StoredSequence> sequences_;
  int64_t repeated_tokens_ = 0;
  int64_t append_messages_ = 0;
  int64_t attend_requests_ = 0;
  int64_t largest_message_ = 0;

 private:
  struct Break {
    int after = -1;  // requests; -1: never
    bool take_first = false;
  };

  static Status NotFound() { return {StatusCode::NOT_FOUND, "no such sequence"}; }

  Status Authenticate(const ServerContext& context) const {
    const std::string token = faults().required_bearer_token;
    if (token.empty()) return Status::OK;
    const auto found = context.client_metadata().find("authorization");
    const bool right = found != context.client_metadata().end() && found->second == absl::StrCat("Bearer ", token);
    return right ? Status::OK : Status(StatusCode::UNAUTHENTICATED, "wrong or no bearer token");
  }

  template <typename Function>
  Status Unary(const ServerContext& context, Function function) {
    if (Status status = Authenticate(context); !status.ok()) return status;
    const std::lock_guard lock(mutex_);
    const int call = unary_calls_++;
    if (call < faults_.unavailable_unary_calls) return {StatusCode::UNAVAILABLE, "injected"};
    Status status = function();
    if (call < faults_.unavailable_unary_calls + faults_.lost_unary_answers) {
      return {StatusCode::UNAVAILABLE, "injected after the call was taken"};
    }
    return status;
  }

  Break PlanBreak(int& streams, int broken_streams, int after) {
    const std::lock_guard lock(mutex_);
    const int stream = streams++;
    if (stream >= broken_streams) return {};
    return {.after = after, .take_first = stream % 2 == 1};
  }

  // With the mutex held:
  StoredSequence& Insert() {
    const uint64_t id = ++last_id_;
    StoredSequence& sequence = sequences_[id];
    sequence.handle.set_id(id);
    sequence.handle.set_generation(1);
    return sequence;
  }

  StoredSequence* Find(const v1::SequenceHandle& handle) {
    const auto found = sequences_.find(handle.id());
    return found == sequences_.end() || handle.generation() != 1 ? nullptr : &found->second;
  }

  Status Append(StoredSequence& sequence, uint32_t layer, int64_t position, const v1::Tensor& k, const v1::Tensor& v);
  void Answer(const v1::AttendItem& item, uint32_t layer, v1::AttendResult& result);

  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> stopping_ = false;
  int port_ = 0;
  uint64_t last_id_ = 0;
  int attend_streams_ = 0;
  int append_streams_ = 0;
  int unary_calls_ = 0;
};

Status FakeAttentionServer::Service::Append(StoredSequence& sequence, uint32_t layer, int64_t position,
                                            const v1::Tensor& k, const v1::Tensor& v) {
  constexpr size_t kRow = kKvHeads * kHeadDim;
  const absl::StatusOr<std::vector<float>> k_values = ToFloats(k);
  const absl::StatusOr<std::vector<float>> v_values = ToFloats(v);
  if (layer >= kLayers || !k_values.ok() || !v_values.ok() || k_values->size() != v_values->size() ||
      k_values->size() % kRow != 0) {
    return {StatusCode::INVALID_ARGUMENT, "layer, k or v"};
  }
  std::vector<std::string>& tokens = sequence.tokens[layer];
  for (size_t i = 0; i * kRow < k_values->size(); ++i) {
    const size_t at = static_cast<size_t>(position) + i;
    std::string token;
    for (const std::vector<float>* values : {&*k_values, &*v_values}) {
      token.append(reinterpret_cast<const char*>(values->data() + i * kRow), kRow * sizeof(float));
    }
    if (at > tokens.size()) return {StatusCode::OUT_OF_RANGE, absl::StrCat("length is ", tokens.size())};
    if (at == tokens.size()) {
      tokens.push_back(std::move(token));
    } else if (tokens[at] == token) {
      ++repeated_tokens_;
    } else {
      return {StatusCode::FAILED_PRECONDITION, absl::StrCat("other bytes at position ", at)};
    }
  }
  return Status::OK;
}

void FakeAttentionServer::Service::Answer(const v1::AttendItem& item, uint32_t layer, v1::AttendResult& result) {
  Status status = Status::OK;
  StoredSequence* sequence = Find(item.handle());
  if (sequence == nullptr) {
    status = NotFound();
  } else if (item.has_k()) {
    status = Append(*sequence, layer, item.position(), item.k(), item.v());
  } else if (item.position() >= static_cast<int64_t>(sequence->tokens[layer].size())) {
    status = {StatusCode::OUT_OF_RANGE, "position"};
  }
  result.mutable_status()->set_code(status.error_code());
  result.mutable_status()->set_message(status.error_message());
  if (status.ok()) client_testing::Attend(sequence->tokens[layer], item.position() + 1, item, result);
}

// The handler's thread reads; a second one sends the answers when their time has come.
Status FakeAttentionServer::Service::Attend(ServerContext* context,
                                            grpc::ServerReaderWriter<v1::AttendResponse, v1::AttendRequest>* stream) {
  if (Status status = Authenticate(*context); !status.ok()) return status;
  const Faults plan = faults();
  const Break planned = PlanBreak(attend_streams_, plan.broken_attend_streams, plan.requests_before_break);

  std::mutex mutex;
  std::condition_variable changed;
  std::multimap<Clock::time_point, v1::AttendResponse> waiting;
  bool no_more = false;
  bool cut = false;
  std::thread sender([&] {
    std::unique_lock lock(mutex);
    while (!cut && !(no_more && waiting.empty())) {
      if (waiting.empty()) {
        changed.wait(lock);
      } else if (waiting.begin()->first > Clock::now()) {
        // A short sleep keeps to what every thread checker understands.
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        lock.lock();
      } else {
        const v1::AttendResponse response = std::move(waiting.begin()->second);
        waiting.erase(waiting.begin());
        lock.unlock();
        stream->Write(response);
        lock.lock();
      }
    }
  });

  std::minstd_rand random(7);
  Status status = Status::OK;
  v1::AttendRequest request;
  for (int count = 0; stream->Read(&request); ++count) {
    const bool breaks = count == planned.after;
    v1::AttendResponse response;
    response.set_request_id(request.request_id());
    int64_t number = 0;
    if (!breaks || planned.take_first) {
      const std::lock_guard lock(mutex_);
      number = ++attend_requests_;
      for (const v1::AttendItem& item : request.items()) Answer(item, request.layer(), *response.add_results());
    }
    if (breaks) {
      status = {static_cast<StatusCode>(plan.break_code), "injected"};
      break;
    }
    if (plan.never_answer) continue;
    if (plan.drop_last_result) response.mutable_results()->RemoveLast();
    const int copies = plan.duplicate_every > 0 && number % plan.duplicate_every == 0 ? 2 : 1;
    const std::lock_guard lock(mutex);
    for (int i = 0; i < copies; ++i) {
      const auto delay = std::chrono::milliseconds(random() % (plan.max_delay_milliseconds + 1));
      waiting.emplace(Clock::now() + delay, response);
    }
    changed.notify_one();
  }
  {
    const std::lock_guard lock(mutex);
    no_more = true;
    cut = !status.ok() || stopping_;
    changed.notify_one();
  }
  sender.join();
  return status;
}

Status FakeAttentionServer::Service::AttendShared(
    ServerContext* /*context*/, grpc::ServerReaderWriter<v1::AttendSharedResponse, v1::AttendSharedRequest>* stream) {
  const std::optional<v1::AttendSharedResponse> told = faults().shared_memory;
  if (!told) return {StatusCode::UNIMPLEMENTED, "no memory is shared"};
  v1::AttendSharedRequest request;
  if (stream->Read(&request)) stream->Write(*told);
  while (stream->Read(&request)) continue;
  return Status::OK;
}

FakeAttentionServer::FakeAttentionServer(const Faults& faults) : service_(std::make_unique<Service>(faults)) {
  service_->Start();
}
FakeAttentionServer::~FakeAttentionServer() { service_->Stop(); }

std::string FakeAttentionServer::target() const { return absl::StrCat("127.0.0.1:", service_->port()); }
void FakeAttentionServer::Stop() { service_->Stop(); }
void FakeAttentionServer::Start() { service_->Start(); }
void FakeAttentionServer::set_faults(const Faults& faults) { service_->set_faults(faults); }

std::vector<std::string> FakeAttentionServer::Tokens(const v1::SequenceHandle& handle, uint32_t layer) const {
  return service_->Tokens(handle, layer);
}
int64_t FakeAttentionServer::num_sequences() const {
  return service_->Locked([](const Service& service) { return static_cast<int64_t>(service.sequences_.size()); });
}
int64_t FakeAttentionServer::repeated_tokens() const {
  return service_->Locked([](const Service& service) { return service.repeated_tokens_; });
}
int64_t FakeAttentionServer::append_messages() const {
  return service_->Locked([](const Service& service) { return service.append_messages_; });
}
int64_t FakeAttentionServer::attend_requests() const {
  return service_->Locked([](const Service& service) { return service.attend_requests_; });
}
int64_t FakeAttentionServer::largest_message() const {
  return service_->Locked([](const Service& service) { return service.largest_message_; });
}

}  // namespace santa::client_testing
