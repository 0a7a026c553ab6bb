// What a wave has written, brought to where its items wanted it.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cuda/decode_wave.h"
#include "kernels/cuda/wave_upload.h"
#include "kernels/element.h"

namespace santa::cuda {

QueryFault DecodeWave::FindFault(const Output& output) const {
  const auto* const faults = reinterpret_cast<const uint64_t*>(host_at(output.faults_at));
  for (int32_t i = 0; i < output.num_faults; ++i) {
    if (faults[i] == kNoFault) continue;
    const auto bits = static_cast<uint32_t>(faults[i]);
    return {.element = static_cast<int64_t>(faults[i] >> 32), .value = ElementAsFloat(&bits, 0, output.io_dtype)};
  }
  return {};
}

double DecodeWave::Deliver() {
  const size_t heads_bytes = sizeof(float) * layout_.num_query_heads;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Output& output = outputs_[i];
    if (output.query_fault != nullptr) *output.query_fault = FindFault(output);
    if (!output.mapped) {
      std::memcpy(output.o, host_at(output.o_at), output.o_bytes);
      std::memcpy(output.lse, host_at(lse_at_ + heads_bytes * i), heads_bytes);
    }
    if (output.relative_standard_error != nullptr) {
      if (plans_[i].score_draws > 0 || ReadsAllRows(plans_[i].kernel)) {
        std::fill_n(output.relative_standard_error, layout_.num_query_heads,
                    plans_[i].score_draws > 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
      } else {
        std::memcpy(output.relative_standard_error, host_at(errors_at_ + heads_bytes * i), heads_bytes);
      }
    }
    if (output.statistics == nullptr) continue;
    ReadCounts counts;
    std::memcpy(&counts, host_at(rows_at_ + sizeof(counts) * i), sizeof(counts));
    DecodeStatistics& statistics = *output.statistics;
    const auto value_bytes = static_cast<int64_t>(counts.value_rows * layout_.row_bytes());
    statistics.value_rows_read += static_cast<int64_t>(counts.value_rows);
    statistics.kv_bytes_read +=
        value_bytes + static_cast<int64_t>(counts.key_features * plans_[i].visible() * SizeOf(layout_.dtype));
    if (!DrawsByGroup(plans_[i].kernel) || GroupMethod(plans_[i].kernel) != Method::kSketched) continue;
    statistics.key_rows_read = static_cast<int64_t>(counts.value_rows);  // with each of them
    statistics.kv_bytes_read += value_bytes;
  }
  return static_cast<double>(word()->nanoseconds) * 1e-9;
}

}  // namespace santa::cuda
