#include "client/client_ring.h"

#include <google/protobuf/io/coded_stream.h>

#include <utility>

#include "client/encode.h"
#include "client/wire.h"

namespace santa::client_internal {
namespace {

RingShape ShapeOf(const v1::AttendSharedResponse& told) {
  return {.slots = told.slots(),
          .request_bytes = told.request_bytes(),
          .answer_bytes = told.answer_bytes(),
          .generation = told.generation()};
}

// The field as protobuf has it; any place in a message is as good as another.
constexpr size_t kRequestIdBytes = 11;
size_t PutRequestId(uint64_t id, char* to) {
  auto* const begin = reinterpret_cast<uint8_t*>(to);
  *begin = v1::AttendRequest::kRequestIdFieldNumber << 3;
  return google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(id, begin + 1) - begin;
}

}  // namespace

absl::StatusOr<std::shared_ptr<ClientRing>> ClientRing::Open(const v1::AttendSharedResponse& told) {
  const RingShape shape = ShapeOf(told);
  if (told.version() != kRingVersion) {
    return absl::FailedPreconditionError("the server's ring is of another version");
  }
  if (absl::Status status = Validate(shape); !status.ok()) return status;
  if (told.bytes() != shape.memory_bytes()) return absl::FailedPreconditionError("the ring's bytes do not fit it");
  absl::StatusOr<SharedMemory> memory = SharedMemory::Open(told.process(), told.fd(), told.bytes());
  if (!memory.ok()) return memory.status();
  absl::StatusOr<Doorbell> doorbell = Doorbell::Find(told.doorbell());
  if (!doorbell.ok()) return doorbell.status();
  std::shared_ptr<ClientRing> ring(new ClientRing(*std::move(memory), *std::move(doorbell), shape, told.watch()));
  if (absl::Status status = ring->ring_.CheckFormat(); !status.ok()) return status;
  return ring;
}

ClientRing::ClientRing(SharedMemory memory, Doorbell doorbell, const RingShape& shape, bool watch)
    : memory_(std::move(memory)),
      doorbell_(std::move(doorbell)),
      watch_(watch),
      ring_(memory_.bytes(), shape, StepRing::End::kClient),
      placed_(shape.slots) {
  for (int32_t slot = shape.slots; slot-- > 0;) free_.push_back(slot);
}

ClientRing::Sent ClientRing::Send(const v1::AttendRequest& request) {
  const std::lock_guard lock(mutex_);
  if (outgrown_ || free_.empty()) return Sent::kNoSlot;
  const int32_t slot = free_.back();
  const size_t bytes = EncodeInto(request, ring_.Room(slot));
  if (bytes == 0) {
    outgrown_ = true;  // nothing may pass it
    return Sent::kTooLarge;
  }
  free_.pop_back();  // slots that were used last are in the caches
  placed_[slot].store(false, std::memory_order_relaxed);
  Publish(slot, bytes);
  return Sent::kYes;
}

std::unique_ptr<PlacedRequest> ClientRing::Place(const v1::AttendRequest& request) {
  const std::lock_guard lock(mutex_);
  if (outgrown_ || free_.size() <= 1) return nullptr;
  const int32_t slot = free_.back();
  const std::span<char> room = ring_.Room(slot);
  std::vector<TensorRooms> rooms;
  const size_t bytes = PlaceInto(request, room.first(room.size() - kRequestIdBytes), &rooms);
  if (bytes == 0) return nullptr;
  free_.pop_back();
  return std::make_unique<PlacedRequest>(shared_from_this(), slot, bytes, std::move(rooms));
}

void ClientRing::Send(PlacedRequest& placed, uint64_t request_id) {
  const std::lock_guard lock(mutex_);
  placed.sent_ = true;
  placed_[placed.slot_].store(true, std::memory_order_relaxed);
  Publish(placed.slot_, placed.bytes_ + PutRequestId(request_id, ring_.Room(placed.slot_).data() + placed.bytes_));
}

void ClientRing::Publish(int32_t slot, size_t bytes) {
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  if (ring_.Publish(slot, bytes)) doorbell_.Ring();
  if (watch_ && ring_.Sleeps()) ring_.WakeClient();
}

absl::StatusOr<ClientRing::Answer> ClientRing::Take() {
  absl::StatusOr<StepRing::Message> message = ring_.Take();
  if (!message.ok()) return message.status();
  in_flight_.fetch_sub(1, std::memory_order_relaxed);
  return Answer{*message, placed_[message->slot].load(std::memory_order_relaxed)};
}

void ClientRing::Free(int32_t slot) {
  const std::lock_guard lock(mutex_);
  free_.push_back(slot);
}

void ClientRing::Sleep(const std::atomic<bool>& ended) {
  constexpr int64_t kLongest = 1'000'000'000;
  ring_.BeginSleep();
  if (!ring_.Waits() && !ended) ring_.SleepFor(kLongest);
  ring_.EndSleep();
}

PlacedRequest::PlacedRequest(const v1::AttendRequest& request)
    : message_(std::make_shared<v1::AttendRequest>(request)), rooms_(static_cast<size_t>(request.items_size())) {
  const auto room = [](v1::Tensor* tensor) -> std::span<char> {
    tensor->mutable_data()->resize(DataBytes(*tensor).value_or(0));
    return *tensor->mutable_data();
  };
  for (int i = 0; i < request.items_size(); ++i) {
    v1::AttendItem& item = *message_->mutable_items(i);
    if (item.has_q()) rooms_[i].q = room(item.mutable_q());
    if (item.has_k()) rooms_[i].k = room(item.mutable_k());
    if (item.has_v()) rooms_[i].v = room(item.mutable_v());
  }
  bytes_ = message_->ByteSizeLong();
}

PlacedRequest::~PlacedRequest() {
  if (ring_ != nullptr && !sent_) ring_->Free(slot_);
}

std::shared_ptr<v1::AttendRequest> PlacedRequest::ToMessage(uint64_t request_id) const {
  std::shared_ptr<v1::AttendRequest> message = message_;
  if (message == nullptr) {
    message = std::make_shared<v1::AttendRequest>();
    message->ParseFromArray(ring_->ring_.Room(slot_).data(), static_cast<int>(bytes_));
  }
  message->set_request_id(request_id);
  return message;
}

}  // namespace santa::client_internal
