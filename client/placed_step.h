// Decode steps whose tensors are written where the server reads them, and answers that are read where it wrote them
// (AttendStream::Place). Where both have mapped the memory, nothing is copied at this end; over gRPC the same calls
// work, and copy.
#ifndef SANTA_CLIENT_PLACED_STEP_H_
#define SANTA_CLIENT_PLACED_STEP_H_

#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

namespace client_internal {
class PlacedRequest;
}  // namespace client_internal

// Where an item's tensors go: row-major, little-endian, of the dtype and shape that the request told, at any alignment.
// Empty where the request has no such tensor.
struct TensorRooms {
  std::span<char> q;
  std::span<char> k;
  std::span<char> v;
};

// A step to be filled and submitted; or dropped, which gives its memory back. It may outlive its stream. Not thread
// safe. What is in the rooms at first is anybody's guess.
class PlacedStep {
 public:
  explicit PlacedStep(std::unique_ptr<client_internal::PlacedRequest> request);
  PlacedStep(PlacedStep&& other) noexcept;
  PlacedStep& operator=(PlacedStep&& other) noexcept;
  ~PlacedStep();

  // Of each item of the request, in order. Not to be written after the step was submitted.
  std::span<const TensorRooms> rooms() const;

 private:
  friend class AttendStream;
  std::unique_ptr<client_internal::PlacedRequest> request_;
};

// Where the outputs of one item lie: nothing where it failed.
struct OutputView {
  std::string_view o;          // [1, H, D] of q's dtype, row-major, little-endian, at any alignment
  std::span<const float> lse;  // [H]
};

// The answer to a placed step. What it refers to goes when the callback that was given it returns.
class AttendAnswer {
 public:
  // Without views its outputs are those in the response.
  explicit AttendAnswer(v1::AttendResponse response, std::vector<OutputView> views = {})
      : response_(std::move(response)), views_(std::move(views)) {}

  int num_items() const { return response_.results_size(); }
  // Status and statistics; o and lse are not there, but in outputs().
  const v1::AttendResult& result(int item) const { return response_.results(item); }
  OutputView outputs(int item) const {
    if (!views_.empty()) return views_[item];
    const v1::AttendResult& result = response_.results(item);
    return {result.o().data(), {result.lse().data(), static_cast<size_t>(result.lse_size())}};
  }

  // Of an answer without views: the whole of it.
  v1::AttendResponse&& TakeResponse() { return std::move(response_); }
  uint64_t request_id() const { return response_.request_id(); }

 private:
  v1::AttendResponse response_;
  std::vector<OutputView> views_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_PLACED_STEP_H_
