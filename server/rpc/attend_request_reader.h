// An AttendRequest's bytes, read for speed: the tensors' data is copied once, out of gRPC's slices into aligned memory,
// and the few dozen other bytes of an item are read into plain structs, as protobuf takes longer to make its messages
// of them than to copy the tensors.
//
// Whatever protobuf's own parser makes of some bytes this makes of them too; what it does not know how to take apart
// (groups, say, or a repeated field in several parts) it leaves to that parser altogether. Fields that are new to the
// API have to be added here and to item_fields.h: until then they are passed over.
#ifndef SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_
#define SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/rpc/item_fields.h"
#include "server/rpc/tensor_memory.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// Keeps its memory from message to message. Not thread safe; does not move.
class AttendRequestReader {
 public:
  // Tensors' memory is mapped where there is a `map`.
  explicit AttendRequestReader(TensorMemory::Map map = nullptr) : data_(std::move(map)) {}
  AttendRequestReader(const AttendRequestReader&) = delete;
  AttendRequestReader& operator=(const AttendRequestReader&) = delete;

  // INVALID_ARGUMENT: the bytes are no AttendRequest, or it has a number of items outside [1, max_items]. However many
  // items it claims, memory is taken for at most max_items.
  absl::Status Read(const grpc::ByteBuffer& bytes, int32_t max_items);
  // The same of bytes that others may change meanwhile: each is read once, those of queries not at all with
  // `leave_queries` (ItemTensors::q_in_place), unless it is a message that protobuf has to read.
  absl::Status Read(std::span<const char> bytes, int32_t max_items, bool leave_queries);

  // The message that was read, until the next Read.
  uint64_t request_id() const { return request_id_; }
  uint32_t layer() const { return layer_; }
  std::span<const ItemFields> items() const { return items_; }

  size_t memory() const { return data_.bytes().size(); }  // bytes that it keeps for tensors

 private:
  class Parts;

  absl::Status ReadParts(std::span<const grpc::Slice> parts, int32_t max_items, bool leave_queries);
  absl::Status ReadByProtobuf(std::span<const grpc::Slice> parts, int32_t max_items);

  std::vector<grpc::Slice> slices_;
  TensorMemory data_;
  uint64_t request_id_ = 0;
  uint32_t layer_ = 0;
  std::vector<ItemFields> items_;
  std::unique_ptr<v1::AttendRequest> message_;  // where protobuf read it: what the items refer to
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_
