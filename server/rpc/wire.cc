#include "server/rpc/wire.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/rpc/validate.h"

namespace santa {
namespace {

absl::Status Unreadable() { return absl::InvalidArgumentError("the message is not a request of this method"); }

std::string NameOf(int item) { return absl::StrCat("items[", item, "]"); }

void SetStatistics(const Step& step, const StepItem& item, v1::AttendStatistics* out) {
  out->set_visible_tokens(item.statistics.visible_tokens);
  out->set_value_rows_read(item.statistics.value_rows_read);
  out->set_kv_bytes_read(item.statistics.kv_bytes_read);
  out->set_dense_kv_bytes(item.statistics.dense_kv_bytes);
  out->set_queue_seconds(absl::ToDoubleSeconds(step.queue_time));
  out->set_device_seconds(absl::ToDoubleSeconds(step.device_time));
  out->set_batch_items(step.batch_items);
  out->set_method(ToMessage(item.options.method));
  out->set_trace_id(step.trace_id);
  out->set_key_rows_read(item.statistics.key_rows_read);
  out->mutable_relative_standard_error()->Assign(item.relative_standard_error.begin(),
                                                 item.relative_standard_error.end());
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

absl::Status AttendExchange::Read(const grpc::ByteBuffer& bytes, const KvLayout& layout, int32_t max_items,
                                  Metrics* metrics) {
  if (absl::Status status = reader_.Read(bytes, max_items); !status.ok()) return status;
  ReadItems(layout, {}, metrics);
  return absl::OkStatus();
}

absl::Status AttendExchange::Read(const SharedMessage& message, const KvLayout& layout, int32_t max_items,
                                  Metrics* metrics) {
  if (absl::Status status = reader_.Read(message.bytes, max_items, message.mapped); !status.ok()) return status;
  ReadItems(layout, message.mapped ? message.room : std::span<char>(), metrics);
  return absl::OkStatus();
}

void AttendExchange::ReadItems(const KvLayout& layout, std::span<char> mapped_room, Metrics* metrics) {
  writer_.Reset(reader_.request_id(), layout);
  step_.items.clear();
  step_.cancelled = false;
  places_.clear();
  seen_.clear();
  const absl::Status layer_status = CheckLayer(reader_.layer(), layout);
  step_.layer = layer_status.ok() ? static_cast<int32_t>(reader_.layer()) : 0;
  const std::span<const ItemFields> items = reader_.items();
  for (int i = 0; i < static_cast<int>(items.size()); ++i) {
    const ItemFields& item = items[i];
    StepItem& step_item = step_.items.emplace_back();
    absl::Status status = layer_status;
    if (status.ok()) {
      status = ReadAttendItem(item, layout, &step_item);
      if (status.ok() && !seen_.insert(item.handle.id).second) {
        status = absl::InvalidArgumentError(
            absl::StrCat("handle.id is ", item.handle.id, "; allowed is one item of a sequence in a request"));
      }
      if (!status.ok()) status = InItem(NameOf(i), status);
    }
    if (!status.ok()) {
      step_.items.pop_back();
      writer_.AddRefused(status);
      metrics->RecordRefusedItem(MethodLabel(item.options.method), status.code());
      continue;
    }
    writer_.AddAnswered(step_item.io_dtype, item.options.want_statistics);
    places_.push_back(i);
  }
  const bool in_place = !mapped_room.empty() && writer_.AllocateIn(mapped_room);
  if (!in_place) writer_.Allocate();
  const auto heads = static_cast<size_t>(layout.num_query_heads);
  errors_.resize(places_.size() * heads);
  for (size_t i = 0; i < places_.size(); ++i) {
    step_.items[i].o = writer_.o(places_[i]);
    step_.items[i].lse = writer_.lse(places_[i]);
    step_.items[i].maps_answer = in_place;
    step_.items[i].shared_with_caller = !mapped_room.empty();
    step_.items[i].relative_standard_error = std::span(errors_).subspan(i * heads, heads);
  }
}

grpc::ByteBuffer AttendExchange::Answer() {
  Fill();
  return writer_.Take();
}

absl::StatusOr<size_t> AttendExchange::AnswerInto(std::span<char> room) {
  Fill();
  return writer_.Copy(room);
}

void AttendExchange::Fill() {
  for (size_t i = 0; i < places_.size(); ++i) {
    const StepItem& item = step_.items[i];
    if (item.query_fault.element >= 0) {
      writer_.SetFailed(places_[i], InItem(NameOf(places_[i]), item.status));
    } else if (!item.status.ok()) {
      writer_.SetFailed(places_[i], item.status);
    } else if (reader_.items()[places_[i]].options.want_statistics) {
      SetStatistics(step_, item, &statistics_);
      writer_.SetStatistics(places_[i], statistics_);
    }
  }
}

std::unique_ptr<AttendExchange> ExchangePool::Take() {
  bool surplus = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<AttendExchange> exchange = std::move(free_.back());
      free_.pop_back();
      return exchange;
    }
    surplus = ++living_ > kMost;
  }
  auto exchange = std::make_unique<AttendExchange>(surplus ? nullptr : map_);
  exchange->surplus = surplus;
  return exchange;
}

void ExchangePool::Return(std::unique_ptr<AttendExchange> exchange) {
  const bool keep = !exchange->surplus && exchange->memory() <= kMostMemory;
  if (!keep) exchange.reset();
  std::lock_guard<std::mutex> lock(mutex_);
  if (keep) {
    free_.push_back(std::move(exchange));
  } else {
    --living_;
  }
}

}  // namespace santa
