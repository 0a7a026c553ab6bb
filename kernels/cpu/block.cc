#include "kernels/cpu/block.h"

#include <algorithm>

namespace santa::cpu {

RunList ListRuns(const DecodeContext& context, const DecodeItem& item, int kv_head, int64_t begin, int64_t end) {
  const KvLayout& layout = context.cache.layout();
  RunList list;
  for (int64_t token = begin; token < end;) {
    const int64_t in_page = token % layout.page_size;
    const int64_t rows = std::min<int64_t>({layout.page_size - in_page, end - token, kMaxRun});
    const int32_t page = item.page_table[token / layout.page_size];
    list.runs[list.count++] = {context.cache.KeyRows(item.layer, page, kv_head) + in_page * layout.row_bytes(),
                               static_cast<int>(rows)};
    token += rows;
  }
  list.num_rows = static_cast<int>(end - begin);
  return list;
}

void ScoreBlock(const DecodeContext& context, const PlannedItem& plan, const float* queries, const RunList& runs,
                Fetch fetch, const RunList& prefetch, const BlockArrays& arrays, HeadVector* max) {
  const DecodeShape& shape = context.shape;
  int row = 0;
  for (int i = 0; i < runs.count; ++i) {
    const Run& run = runs.runs[i];
    const uint8_t* next = fetch == Fetch::kValues ? ValuesOf(context, prefetch, i)
                          : fetch == Fetch::kKeys ? KeysOf(prefetch, i)
                                                  : nullptr;
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      context.kernels.score({.rows = run.keys,
                             .num_rows = run.num_rows,
                             .head_dim = shape.head_dim,
                             .heads = shape.heads(chunk),
                             .queries = queries + static_cast<int64_t>(chunk) * kChunkHeads * shape.padded_dim,
                             .scores = arrays.chunk_scores(chunk) + row * shape.pitch(chunk),
                             .prefetch = chunk == 0 ? next : nullptr});
    }
    row += run.num_rows;
  }
  for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
    context.kernels.finish_scores(arrays.chunk_scores(chunk), runs.num_rows, shape.pitch(chunk), plan.scale,
                                  plan.item->options.soft_cap, &max[chunk]);
  }
}

}  // namespace santa::cpu
