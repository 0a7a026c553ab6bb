#include "kernels/cpu/block.h"

#include <algorithm>

namespace santa::cpu {

RunList ListRuns(const DecodeContext& context, const DecodeItem& item, int kv_head, int64_t begin, int64_t end) {
  const KvLayout& layout = context.cache.layout();
  RunList list;
  for (int64_t token = begin; token < end;) {
    const int64_t in_page = token % layout.page_size;
    const int64_t rows = std::min<int64_t>({layout.page_size - in_page, end - token, kMaxRun});
    const uint8_t* page = context.cache.KeyRows(item.layer, item.page_table[token / layout.page_size], kv_head);
    const auto row = static_cast<int64_t>(in_page * layout.row_bytes());
    const auto key = static_cast<int64_t>(layout.key_order == KeyOrder::kFeatureMajor ? in_page * SizeOf(layout.dtype)
                                                                                      : in_page * layout.row_bytes());
    list.runs[list.count++] = {page + key, page + context.cache.value_offset() + row, static_cast<int>(rows)};
    token += rows;
  }
  list.num_rows = static_cast<int>(end - begin);
  return list;
}

uint64_t MassOfBlock(const DecodeShape& shape, const BlockArrays& arrays, int num_rows, int head) {
  const int chunk = head / kChunkHeads;
  const uint64_t* groups = arrays.chunk_groups(chunk) + head % kChunkHeads;
  uint64_t mass = 0;
  for (int group = 0; group * kRowGroup < num_rows; ++group) mass += groups[group * shape.pitch(chunk)];
  return mass;
}

}  // namespace santa::cpu
