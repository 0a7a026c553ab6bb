// The scales of an fp8 cache from a file.
#ifndef SANTA_SERVER_KV_SCALES_H_
#define SANTA_SERVER_KV_SCALES_H_

#include <string>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa {

// {"k_scale": [[...], ...], "v_scale": [[...], ...]}: for each layer a number for each key/value head.
// INVALID_ARGUMENT, a sentence, for text that is not that or does not fit the layout.
absl::StatusOr<KvScales> ParseKvScales(const std::string& json, const KvLayout& layout);

}  // namespace santa

#endif  // SANTA_SERVER_KV_SCALES_H_
