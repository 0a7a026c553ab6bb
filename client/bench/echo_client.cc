#include "client/bench/echo_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "client/bench/echo_message.h"
#include "client/concat.h"

namespace santa::bench {
namespace {

using client_internal::Concat;

constexpr std::chrono::seconds kConnect(10);

}  // namespace

// The stream's reactor: lives in the client, which waits for OnDone before it goes.
struct EchoClient::State final : grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
  explicit State(EchoOptions echo_options)
      : options(std::move(echo_options)), raw_request(ZeroBytes(options.request.ByteSizeLong())) {}

  void OnReadDone(bool ok) override {
    const Clock::time_point now = Clock::now();
    if (!ok) {
      const std::lock_guard lock(mutex);
      broken = true;
      changed.notify_all();
      return;
    }
    if (options.kind == EchoKind::kProtobuf) {
      attention::v1::AttendResponse response;
      DecodeMessage(answer, &response);
    }
    const Clock::time_point parsed = options.kind == EchoKind::kProtobuf ? Clock::now() : now;
    const std::lock_guard lock(mutex);
    const Clock::time_point begun = sent.front();
    sent.pop_front();
    if (window->Contains(begun)) latency.Record(std::chrono::nanoseconds(parsed - begun).count());
    if (Clock::now() < window->end.load()) {
      Send();
    } else if (sent.empty()) {
      changed.notify_all();
    }
    StartRead(&answer);
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex);
    writing = false;
    if (ok && unwritten > 0) Write();
  }

  void OnDone(const grpc::Status& /*status*/) override {
    const std::lock_guard lock(mutex);
    done = true;
    changed.notify_all();
  }

  // With the mutex held.
  void Send() {
    sent.push_back(Clock::now());
    ++unwritten;
    if (!writing) Write();
  }
  void Write() {
    --unwritten;
    writing = true;
    request = options.kind == EchoKind::kRaw ? raw_request : EncodeMessage(options.request);
    StartWrite(&request);
  }

  const EchoOptions options;
  const grpc::ByteBuffer raw_request;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>> stub;
  grpc::ClientContext context;

  std::mutex mutex;
  std::condition_variable changed;  // sent became empty, broken or done
  std::deque<Clock::time_point> sent;
  int64_t unwritten = 0;
  bool writing = false;
  bool broken = false;  // no more answers
  bool done = false;
  const LoadWindow* window = nullptr;
  LatencyHistogram latency;
  grpc::ByteBuffer request;
  grpc::ByteBuffer answer;
};

EchoClient::EchoClient(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<EchoClient>> EchoClient::Connect(EchoOptions options) {
  auto owned = std::make_unique<State>(std::move(options));
  State* const state = owned.get();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own, as each client of the load has
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  state->channel = grpc::CreateCustomChannel(state->options.target, grpc::InsecureChannelCredentials(), arguments);
  if (!state->channel->WaitForConnected(std::chrono::system_clock::now() + kConnect)) {
    return absl::UnavailableError(Concat("no echo server answers at ", state->options.target));
  }
  state->stub = std::make_unique<grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>>(state->channel);
  state->context.AddMetadata(kEchoAnswerBytes, std::to_string(state->options.answer_bytes));
  state->context.AddMetadata(kEchoKind, state->options.kind == EchoKind::kRaw ? "raw" : "protobuf");
  state->stub->PrepareBidiStreamingCall(&state->context, kEchoMethod, {}, state);
  {
    const std::lock_guard lock(state->mutex);
    state->AddHold();  // writes start outside reactions too
    state->StartRead(&state->answer);
    state->StartCall();
  }
  return std::unique_ptr<EchoClient>(new EchoClient(std::move(owned)));
}

EchoClient::~EchoClient() {
  state_->context.TryCancel();
  state_->RemoveHold();
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->done; });
}

absl::Status EchoClient::Run(const LoadWindow& window) {
  std::unique_lock lock(state_->mutex);
  state_->window = &window;
  for (int64_t i = 0; i < state_->options.in_flight; ++i) state_->Send();
  state_->changed.wait(lock, [this] { return state_->sent.empty() || state_->broken; });
  if (!state_->sent.empty()) {
    return absl::InternalError(Concat("the echo's stream to ", state_->options.target, " broke"));
  }
  return absl::OkStatus();
}

const LatencyHistogram& EchoClient::latency() const { return state_->latency; }

}  // namespace santa::bench
