// The reactor of one AppendKv stream: reads a chunk, stores it, reads the next.
#ifndef SANTA_SERVER_RPC_APPEND_STREAM_H_
#define SANTA_SERVER_RPC_APPEND_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "server/engine/step.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/wire.h"

namespace santa {

using AppendReactor = grpc::ServerReadReactor<grpc::ByteBuffer>;

// Deletes itself.
class AppendStream final : public AppendReactor, public DrainableStream {
 public:
  static constexpr char kMethod[] = "AppendKv";

  // `response` lives as long as the stream.
  AppendStream(ServiceContext* context, Caller caller, grpc::ByteBuffer* response)
      : context_(context), caller_(std::move(caller)), response_(response) {}
  void Begin();

  void BeginDrain() override;
  void OnReadDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // A message and the step whose pointers lead into it.
  struct Chunk {
    v1::AppendKvRequest message;
    Step step;
  };

  // All but StepDone with mutex_ held, ReadChunk with parsing_ set instead.
  absl::StatusOr<std::unique_ptr<Chunk>> ReadChunk(const grpc::ByteBuffer& bytes);
  void Store(std::unique_ptr<Chunk> chunk);
  void StepDone();  // device thread
  void End(const absl::Status& status);
  void Proceed();
  absl::Status Respond();

  ServiceContext* const context_;
  const Caller caller_;
  grpc::ByteBuffer* const response_;

  std::mutex mutex_;  // as in AttendCall
  std::unique_ptr<Chunk> storing_;
  std::optional<SequenceHandle> handle_;  // the one in force
  int64_t chunks_ = 0;                    // read so far
  int64_t tokens_appended_ = 0;
  grpc::ByteBuffer incoming_;
  bool reading_ = false;
  bool parsing_ = false;
  bool half_closed_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
  absl::Status end_;
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_APPEND_STREAM_H_
