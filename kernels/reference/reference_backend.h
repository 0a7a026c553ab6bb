// A backend of plain loops over kernels/sampling: slow, single-threaded, and short enough to check by eye. Test-only:
// it proves the backend suite and the sampling arithmetic, and lets code above the contract be tested without a device.
#ifndef SANTA_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
#define SANTA_KERNELS_REFERENCE_REFERENCE_BACKEND_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa::reference {

// INVALID_ARGUMENT for a bad layout or num_pages < 1.
absl::StatusOr<std::unique_ptr<Backend>> MakeReferenceBackend(const KvLayout& layout, int32_t num_pages);

// With scales of an fp8 cache, which must be valid for the layout.
absl::StatusOr<std::unique_ptr<Backend>> MakeScaledReferenceBackend(const KvLayout& layout, int32_t num_pages,
                                                                    const KvScales& scales);

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
