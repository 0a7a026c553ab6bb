#include "client/placed_step.h"

#include "client/client_ring.h"

namespace santa {

PlacedStep::PlacedStep(std::unique_ptr<client_internal::PlacedRequest> request) : request_(std::move(request)) {}
PlacedStep::PlacedStep(PlacedStep&& other) noexcept = default;
PlacedStep& PlacedStep::operator=(PlacedStep&& other) noexcept = default;
PlacedStep::~PlacedStep() = default;

std::span<const TensorRooms> PlacedStep::rooms() const { return request_->rooms(); }

}  // namespace santa
