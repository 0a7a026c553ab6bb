// From the server's structs to the API's messages.
#ifndef SANTA_SERVER_RPC_CONVERT_H_
#define SANTA_SERVER_RPC_CONVERT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/kv/sequence_store.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

v1::DataType ToMessage(DType dtype);
v1::Method ToMessage(Method method);
v1::Sketch ToMessage(Sketch sketch);
v1::KeyOrder ToMessage(KeyOrder order);
void ToMessage(const KvLayout& layout, v1::KvLayout* out);
void ToMessage(const SequenceInfo& info, v1::Sequence* out);

// A ListSequences token: where to go on, bound to this server's life by `nonce`, so that one that was made up, or that
// another server gave, is told apart.
std::string MakePageToken(uint64_t after_id, uint64_t nonce);
// INVALID_ARGUMENT. Empty: 0, the beginning.
absl::StatusOr<uint64_t> ReadPageToken(const std::string& token, uint64_t nonce);

}  // namespace santa

#endif  // SANTA_SERVER_RPC_CONVERT_H_
