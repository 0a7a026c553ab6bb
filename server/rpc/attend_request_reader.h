// An AttendRequest's bytes, read for speed: the tensors' data is copied once, out of gRPC's slices into aligned memory,
// and protobuf parses what is left, a few dozen bytes an item.
//
// Whatever protobuf's own parser makes of some bytes this makes of them too; what it does not know how to take apart
// (groups, say) it leaves to that parser altogether. So new fields need nothing here, but for tensors in an item.
#ifndef SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_
#define SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_

#include <google/protobuf/arena.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/rpc/item_tensors.h"
#include "server/rpc/tensor_memory.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// Keeps its memory from message to message. Not thread safe; does not move.
class AttendRequestReader {
 public:
  // Tensors' memory is mapped where there is a `map`.
  explicit AttendRequestReader(TensorMemory::Map map = nullptr);
  AttendRequestReader(const AttendRequestReader&) = delete;
  AttendRequestReader& operator=(const AttendRequestReader&) = delete;

  // INVALID_ARGUMENT: the bytes are no AttendRequest, or it has a number of items outside [1, max_items]. However many
  // items it claims, memory is taken for at most max_items.
  absl::Status Read(const grpc::ByteBuffer& bytes, int32_t max_items);
  // The same of bytes that others may change meanwhile: each is read once, those of queries not at all with
  // `leave_queries` (ItemTensors::q_in_place), unless it is a message that protobuf has to read.
  absl::Status Read(std::span<const char> bytes, int32_t max_items, bool leave_queries);

  // The message that was read, until the next Read. Its tensors may lack their data, which tensors() has.
  const v1::AttendRequest& request() const { return *request_; }
  const ItemTensors& tensors(int item) const { return tensors_[item]; }

  size_t memory() const { return data_.bytes().size(); }  // bytes that it keeps for tensors

 private:
  class Parts;

  absl::Status ReadParts(std::span<const grpc::Slice> parts, int32_t max_items, bool leave_queries);
  absl::Status ReadByProtobuf(std::span<const grpc::Slice> parts, int32_t max_items);

  std::vector<grpc::Slice> slices_;
  std::string fields_;  // the message without the tensors' data
  TensorMemory data_;
  std::vector<ItemTensors> tensors_;
  const std::unique_ptr<char[]> arena_block_;
  google::protobuf::Arena arena_;
  v1::AttendRequest* request_ = nullptr;  // in the arena
};

}  // namespace santa

#endif  // SANTA_SERVER_RPC_ATTEND_REQUEST_READER_H_
