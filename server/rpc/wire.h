// The wire's bytes to steps and back: the one place that knows how messages are encoded. A faster path than protobuf's
// parser would go here and nowhere else.
#ifndef SANTA_SERVER_RPC_WIRE_H_
#define SANTA_SERVER_RPC_WIRE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/engine/step.h"
#include "server/metrics/metrics.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

grpc::Status ToGrpc(const absl::Status& status);

// INVALID_ARGUMENT when the bytes are no message of this kind.
absl::Status Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);
grpc::ByteBuffer Encode(const google::protobuf::MessageLite& message);

// One request of an Attend stream: owns the message that came, the step whose pointers lead into it, and the response,
// which the step fills. Not thread safe; does not move.
class AttendExchange {
 public:
  // An error ends the stream: bytes that are no request, or a number of items outside [1, max_items], which cannot be
  // answered item by item (each answer would be larger than what it answers).
  static absl::StatusOr<std::unique_ptr<AttendExchange>> Read(const grpc::ByteBuffer& bytes, const KvLayout& layout,
                                                              int32_t max_items, Metrics* metrics);
  AttendExchange(const AttendExchange&) = delete;
  AttendExchange& operator=(const AttendExchange&) = delete;

  // The items that are valid; the others have their answer already. Tenant, deadline and `done` are the caller's to
  // set.
  Step* step() { return &step_; }

  // The answer, once every item of the step has its status.
  grpc::ByteBuffer Answer();

 private:
  AttendExchange() = default;
  void ReadItems(const KvLayout& layout, Metrics* metrics);

  v1::AttendRequest request_;
  v1::AttendResponse response_;
  Step step_;
  std::vector<int> places_;  // step item -> request item
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_WIRE_H_
