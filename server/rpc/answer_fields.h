// The fields of an AttendResponse as protobuf's wire format has them.
#ifndef SANTA_SERVER_RPC_ANSWER_FIELDS_H_
#define SANTA_SERVER_RPC_ANSWER_FIELDS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/rpc/convert.h"

namespace santa::answer_fields {

inline constexpr int kVarint = 0;
inline constexpr int kBytes = 2;

inline char* PutVarint(uint64_t value, char* to) {
  for (; value >= 0x80; value >>= 7) *to++ = static_cast<char>(value | 0x80);
  *to++ = static_cast<char>(value);
  return to;
}

// In so many bytes, though fewer would do: any parser takes it.
inline char* PutLongVarint(uint64_t value, size_t bytes, char* to) {
  for (; bytes > 1; --bytes, value >>= 7) *to++ = static_cast<char>(value | 0x80);
  *to++ = static_cast<char>(value);
  return to;
}

inline char* PutTag(int field, int wire_type, char* to) {
  *to++ = static_cast<char>(field << 3 | wire_type);
  return to;
}

inline char* PutLength(int field, size_t length, char* to) { return PutVarint(length, PutTag(field, kBytes, to)); }

inline size_t VarintSize(uint64_t value) {
  size_t size = 1;
  for (; value >= 0x80; value >>= 7) ++size;
  return size;
}

// The fields of o before its data.
inline char* PutTensorHead(const KvLayout& layout, DType dtype, size_t data_bytes, char* to) {
  using attention::v1::Tensor;
  to = PutVarint(static_cast<uint64_t>(ToMessage(dtype)), PutTag(Tensor::kDtypeFieldNumber, kVarint, to));
  const std::array<uint64_t, 3> shape = {1, static_cast<uint64_t>(layout.num_query_heads),
                                         static_cast<uint64_t>(layout.head_dim)};
  to = PutLength(Tensor::kShapeFieldNumber, VarintSize(shape[0]) + VarintSize(shape[1]) + VarintSize(shape[2]), to);
  for (const uint64_t extent : shape) to = PutVarint(extent, to);
  return PutLength(Tensor::kDataFieldNumber, data_bytes, to);
}

}  // namespace santa::answer_fields

#endif  // SANTA_SERVER_RPC_ANSWER_FIELDS_H_
