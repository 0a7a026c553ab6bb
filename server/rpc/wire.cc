#include "server/rpc/wire.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/validate.h"

namespace santa {
namespace {

absl::Status Unreadable() { return absl::InvalidArgumentError("the message is not a request of this method"); }

void SetStatus(const absl::Status& status, v1::ItemStatus* out) {
  out->set_code(static_cast<int>(status.code()));
  out->set_message(std::string(status.message()));
}

// How many items a request has, without making them: an empty item takes two bytes on the wire and a hundred in memory.
absl::StatusOr<int64_t> CountItems(const grpc::ByteBuffer& bytes) {
  using google::protobuf::internal::WireFormatLite;
  grpc::ByteBuffer copy(bytes);  // of references, not of bytes
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok()) return Unreadable();
  google::protobuf::io::CodedInputStream input(&reader);
  int64_t items = 0;
  while (const uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) == v1::AttendRequest::kItemsFieldNumber) ++items;
    if (!WireFormatLite::SkipField(&input, tag)) return Unreadable();
  }
  if (!input.ConsumedEntireMessage()) return Unreadable();
  return items;
}

// Room for the answer, where the engine writes it: nothing is copied afterwards.
void MakeRoom(const v1::AttendItem& item, const KvLayout& layout, StepItem* step_item, v1::AttendResult* result) {
  v1::Tensor* o = result->mutable_o();
  o->set_dtype(item.q().dtype());
  *o->mutable_shape() = item.q().shape();
  std::string* data = o->mutable_data();
  data->resize(item.q().data().size());
  step_item->o = data->data();
  result->mutable_lse()->Resize(layout.num_query_heads, 0);
  step_item->lse = result->mutable_lse()->mutable_data();
}

void SetStatistics(const Step& step, const StepItem& item, v1::AttendStatistics* out) {
  out->set_visible_tokens(item.statistics.visible_tokens);
  out->set_value_rows_read(item.statistics.value_rows_read);
  out->set_kv_bytes_read(item.statistics.kv_bytes_read);
  out->set_dense_kv_bytes(item.statistics.dense_kv_bytes);
  out->set_queue_seconds(absl::ToDoubleSeconds(step.queue_time));
  out->set_device_seconds(absl::ToDoubleSeconds(step.device_time));
  out->set_batch_items(step.batch_items);
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

absl::Status Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(bytes);  // of references, not of bytes
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader)) return Unreadable();
  return absl::OkStatus();
}

grpc::ByteBuffer Encode(const google::protobuf::MessageLite& message) {
  grpc::ByteBuffer bytes;
  constexpr int kBlock = 1 << 20;
  grpc::ProtoBufferWriter writer(&bytes, kBlock, static_cast<int>(message.ByteSizeLong()));
  message.SerializeToZeroCopyStream(&writer);
  return bytes;
}

absl::StatusOr<std::unique_ptr<AttendExchange>> AttendExchange::Read(const grpc::ByteBuffer& bytes,
                                                                     const KvLayout& layout, int32_t max_items,
                                                                     Metrics* metrics) {
  const absl::StatusOr<int64_t> items = CountItems(bytes);
  if (!items.ok()) return items.status();
  if (*items < 1 || *items > max_items) {
    return absl::InvalidArgumentError(absl::StrCat("items is ", *items, " long; allowed is [1, ", max_items, "]"));
  }
  std::unique_ptr<AttendExchange> exchange(new AttendExchange());
  if (absl::Status status = Decode(bytes, &exchange->request_); !status.ok()) return status;
  exchange->ReadItems(layout, metrics);
  return exchange;
}

void AttendExchange::ReadItems(const KvLayout& layout, Metrics* metrics) {
  const int count = request_.items_size();
  response_.set_request_id(request_.request_id());
  response_.mutable_results()->Reserve(count);
  step_.items.reserve(count);
  places_.reserve(count);
  const absl::Status layer_status = CheckLayer(request_.layer(), layout);
  if (layer_status.ok()) step_.layer = static_cast<int32_t>(request_.layer());
  std::unordered_set<uint64_t> seen;
  for (int i = 0; i < count; ++i) {
    const v1::AttendItem& item = request_.items(i);
    const std::string field = absl::StrCat("items[", i, "]");
    v1::AttendResult* result = response_.add_results();
    StepItem step_item;
    absl::Status status = layer_status;
    if (status.ok()) status = ReadAttendItem(item, field, layout, &step_item);
    if (status.ok() && !seen.insert(item.handle().id()).second) {
      status = absl::InvalidArgumentError(absl::StrCat(field, ".handle.id is ", item.handle().id(),
                                                       "; allowed is one item of a sequence in a request"));
    }
    if (!status.ok()) {
      SetStatus(status, result->mutable_status());
      metrics->RecordRefusedItem(MethodLabel(item.options().method()), status.code());
      continue;
    }
    MakeRoom(item, layout, &step_item, result);
    step_.items.push_back(std::move(step_item));
    places_.push_back(i);
  }
}

grpc::ByteBuffer AttendExchange::Answer() {
  for (size_t i = 0; i < places_.size(); ++i) {
    const StepItem& item = step_.items[i];
    v1::AttendResult* result = response_.mutable_results(places_[i]);
    SetStatus(item.status, result->mutable_status());
    if (!item.status.ok()) {
      result->clear_o();
      result->clear_lse();
    } else if (request_.items(places_[i]).options().want_statistics()) {
      SetStatistics(step_, item, result->mutable_statistics());
    }
  }
  return Encode(response_);
}

}  // namespace santa
