// What every decode kernel is launched with. Plain data; all pointers name device memory, answers
// pinned memory where the host wants them.
#ifndef SANTA_KERNELS_CUDA_DECODE_LAUNCH_H_
#define SANTA_KERNELS_CUDA_DECODE_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/work_unit.h"
#include "kernels/sampling/standard_error.h"
#include "kernels/types.h"

namespace santa::cuda {

// One query token of one sequence in one layer.
struct DeviceItem {
  const void* layer = nullptr;          // the layer's pool: [page][K|V][kv_head][token][D]; of K perhaps [D][token]
  const void* sketch = nullptr;         // the layer's sketches: [page][kv_head] (kernels/cuda/sketch_layout.h)
  const int32_t* page_table = nullptr;  // [pages of the sequence]
  const void* q = nullptr;              // [H][D] of the type of the products: bf16 for a bf16 cache, else fp16
  void* o = nullptr;                    // [H][D] of io_dtype
  float* lse = nullptr;                 // [H]
  const float* sinks = nullptr;         // [H], or null
  // [2][H_kv], K's then V's, of the item's layer: a stored number stands for itself times its scale. Null: all 1.
  const float* kv_scales = nullptr;
  float* relative_standard_error = nullptr;  // [H], or null: not wanted
  // Counts the distinct value rows that a sampled method reads; null: not wanted.
  unsigned long long* rows_read = nullptr;
  uint64_t seed = 0, sampling_key = 0;
  int32_t position = 0;        // of the query
  int32_t begin = 0, end = 0;  // visible tokens
  int32_t first_split = 0;     // index of the item's first split in the launch's partial results
  int32_t num_splits = 0;
  int32_t layer_index = 0;
  uint32_t sample_count = 0;        // 0: EXACT; with a target that of the pilot draw
  float target_relative_error = 0;  // 0: none
  float scale = 0, soft_cap = 0;    // in natural units; soft_cap 0: none
  DType io_dtype = DType::kBFloat16;
  // Of feature-major keys alone: ternary queries that stand for q (0: q itself), and what counts the features of keys
  // that are read, over all key/value heads; null: not wanted.
  uint32_t score_draws = 0;
  unsigned long long* features_read = nullptr;
};

// One launch over any number of items of one cache.
struct DecodeLaunch {
  const DeviceItem* items = nullptr;
  const WorkUnit* work = nullptr;  // [num_work]
  int32_t num_work = 0;
  float* partial_o = nullptr;         // [splits][H_kv][G][D]
  float2* partial_max_sum = nullptr;  // [splits][H_kv][G]: largest score (log2 units), sum of exp2(score - largest)
  // [splits][H_kv][G], of methods that draw for each head, where an item wants standard errors. S2ANTA_FLASH: `steps`
  // alone, which is the squared error of partial_o.
  sampling::StepSums* partial_errors = nullptr;
  unsigned* tickets = nullptr;    // [items][H_kv][2], zero before the first launch; each launch leaves them zero
  unsigned* next_unit = nullptr;  // likewise one number, of a kernel whose blocks take their work in order
  int32_t num_kv_heads = 0, group_size = 0, head_dim = 0;
  int32_t page_shift = 0;  // log2 of the page size
  DType dtype = DType::kBFloat16;
  // Keys are feature-major where it is not null: [items][H_kv] of kernels/cuda/feature_queries.h, and `q` is not read.
  uint8_t* feature_queries = nullptr;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_DECODE_LAUNCH_H_
