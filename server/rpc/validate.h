// From the API's messages to the engine's structs: everything that can be told without looking at a sequence.
//
// Each function answers OK or a canonical code with a message of the form "<field> is <value>; allowed is <range>":
// INVALID_ARGUMENT for bad sizes, shapes and numbers, UNIMPLEMENTED for what a later version may take (an unknown
// dtype or method, several query tokens), OUT_OF_RANGE never (that is the sequence's to say). Messages are ASCII and
// short whatever the request holds. Pure functions, thread safe.
#ifndef SANTA_SERVER_RPC_VALIDATE_H_
#define SANTA_SERVER_RPC_VALIDATE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "proto/santa/attention/v1/attention.pb.h"
#include "server/engine/step.h"
#include "server/kv/sequence_store.h"
#include "server/rpc/item_fields.h"

namespace santa {

namespace v1 = ::santa::attention::v1;

// `field` names the place in messages, as "items[3].q".
absl::StatusOr<DType> ToDType(int wire_dtype, const std::string& field);
absl::StatusOr<SequenceHandle> ToHandle(bool present, const v1::SequenceHandle& handle, const std::string& field);

// A lease of the API, in seconds: 0 (a default) or (0, max_lease].
absl::StatusOr<absl::Duration> ToLease(double seconds, absl::Duration max_lease);

// Fills the first half of `out` (see StepItem) but for o and lse. Its pointers lead to what `item` refers to, which
// must outlive it; the data of a q in place is not looked at. Errors name fields as of the item (InItem), so that
// nothing is allocated but for them.
absl::Status ReadAttendItem(const ItemFields& item, const KvLayout& layout, StepItem* out);

// An error of an item's field, as of the whole request.
absl::Status InItem(const std::string& item, const absl::Status& status);

// As ReadAttendItem, of an AppendKv message; `handle` is the one in force.
absl::Status ReadAppendChunk(const v1::AppendKvRequest& chunk, const SequenceHandle& handle, const KvLayout& layout,
                             StepItem* out);

// INVALID_ARGUMENT unless layer lies in [0, num_layers).
absl::Status CheckLayer(uint32_t layer, const KvLayout& layout);

// The method's name as a metric's label; "UNKNOWN" for a number that is none.
std::string_view MethodLabel(int wire_method);

}  // namespace santa

#endif  // SANTA_SERVER_RPC_VALIDATE_H_
