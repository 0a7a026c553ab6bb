#include "server/rpc/append_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/rpc/convert.h"
#include "server/rpc/validate.h"

namespace santa {
void AppendStream::Begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  Proceed();
}

void AppendStream::BeginDrain() {
  std::lock_guard<std::mutex> lock(mutex_);
  End(absl::UnavailableError("the server is draining; retry on another one"));
  Proceed();
}

void AppendStream::OnReadDone(bool ok) {
  std::unique_lock<std::mutex> lock(mutex_);
  reading_ = false;
  if (!ok) {
    half_closed_ = true;
    Proceed();
    return;
  }
  grpc::ByteBuffer bytes;
  bytes.Swap(&incoming_);
  parsing_ = true;
  lock.unlock();
  absl::StatusOr<std::unique_ptr<Chunk>> chunk = ReadChunk(bytes);
  bytes.Clear();
  lock.lock();
  parsing_ = false;
  if (!chunk.ok()) {
    End(chunk.status());
  } else if (end_.ok() && !cancelled_) {
    Store(*std::move(chunk));
  }
  Proceed();
}

absl::StatusOr<std::unique_ptr<AppendStream::Chunk>> AppendStream::ReadChunk(const grpc::ByteBuffer& bytes) {
  auto chunk = std::make_unique<Chunk>();
  ++chunks_;
  absl::Status status = Decode(bytes, &chunk->message);
  if (status.ok() && (chunk->message.has_handle() || !handle_.has_value())) {
    const absl::StatusOr<SequenceHandle> handle =
        ToHandle(chunk->message.has_handle(), chunk->message.handle(), "handle");
    status = handle.status();
    if (handle.ok()) handle_ = *handle;
  }
  if (status.ok()) status = CheckLayer(chunk->message.layer(), context_->layout);
  if (status.ok()) {
    chunk->step.items.resize(1);
    status = ReadAppendChunk(chunk->message, *handle_, context_->layout, chunk->step.items.data());
  }
  if (!status.ok()) return status;
  chunk->step.layer = static_cast<int32_t>(chunk->message.layer());
  chunk->step.tenant = caller_.tenant;
  chunk->step.client = caller_.client;
  chunk->step.deadline = caller_.deadline;
  chunk->step.done = [this] { StepDone(); };
  return chunk;
}

void AppendStream::Store(std::unique_ptr<Chunk> chunk) {
  storing_ = std::move(chunk);
  const absl::Status status = context_->engine->Submit(&storing_->step);
  if (status.ok()) return;
  storing_.reset();
  End(status);
}

void AppendStream::StepDone() {
  std::lock_guard<std::mutex> lock(mutex_);
  context_->metrics->RecordStep(storing_->step);
  const StepItem& item = storing_->step.items.front();
  tokens_appended_ += item.tokens_appended;
  if (!item.status.ok()) End(item.status);
  storing_.reset();
  Proceed();
}

void AppendStream::OnCancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
  if (storing_ != nullptr) storing_->step.cancelled = true;
  Proceed();
}

// The first reason stays; it tells which message of the stream it is about.
void AppendStream::End(const absl::Status& status) {
  if (!end_.ok()) return;
  end_ = absl::Status(status.code(), chunks_ == 0 ? std::string(status.message())
                                                  : absl::StrCat("message ", chunks_,
                                                                 " of the stream: ", std::string(status.message())));
}

void AppendStream::Proceed() {
  if (finished_ || parsing_ || storing_ != nullptr) return;
  const bool ending = half_closed_ || cancelled_ || !end_.ok();
  if (!ending && !reading_) {
    reading_ = true;
    StartRead(&incoming_);
  }
  if (!ending) return;
  finished_ = true;
  absl::Status status = cancelled_ ? CancellationStatus(caller_.deadline) : end_;
  if (status.ok()) status = Respond();
  RecordCall(context_, kMethod, status, caller_.trace);
  Finish(ToGrpc(status));
}

absl::Status AppendStream::Respond() {
  if (!handle_.has_value()) {
    return absl::InvalidArgumentError("the stream is 0 messages long; allowed is 1 or more");
  }
  const absl::StatusOr<SequenceInfo> info = context_->store->Get(caller_.tenant, *handle_, absl::Now());
  if (!info.ok()) return info.status();
  v1::AppendKvResponse response;
  ToMessage(*info, response.mutable_sequence());
  response.set_tokens_appended(tokens_appended_);
  *response_ = Encode(response);
  return absl::OkStatus();
}

void AppendStream::OnDone() {
  { std::lock_guard<std::mutex> lock(mutex_); }
  context_->streams->Remove(this);
  delete this;
}

}  // namespace santa
