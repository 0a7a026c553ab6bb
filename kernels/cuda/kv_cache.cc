#include "kernels/cuda/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/page_copy.h"
#include "kernels/cuda/sketch_build.h"

namespace santa::cuda {
namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;
constexpr size_t kMaxCopies = 65535;    // of one launch
constexpr size_t kMaxSketches = 65535;  // likewise
constexpr int64_t kMostKept = 256;      // tokens

absl::StatusOr<DeviceMemory> UploadScales(const KvLayout& layout, const KvScales& scales) {
  std::vector<float> all;
  const size_t heads = layout.num_kv_heads;
  for (int32_t layer = 0; layer < layout.num_layers; ++layer) {
    for (const std::vector<float>* values : {&scales.k, &scales.v}) {
      all.insert(all.end(), values->begin() + heads * layer, values->begin() + heads * (layer + 1));
    }
  }
  const size_t bytes = all.size() * sizeof(float);
  absl::StatusOr<DeviceMemory> memory = AllocateDevice(bytes, "the scales of K and V");
  if (!memory.ok()) return memory.status();
  if (absl::Status status =
          ToStatus(cudaMemcpy(memory->get(), all.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
      !status.ok()) {
    return status;
  }
  return memory;
}

}  // namespace

absl::StatusOr<KvCache> KvCache::Allocate(const KvLayout& layout, int32_t num_pages, const KvScales& scales,
                                          cudaStream_t stream) {
  size_t layer_bytes = 0;
  size_t bytes = 0;
  if (__builtin_mul_overflow(layout.layer_page_bytes(), static_cast<size_t>(num_pages), &layer_bytes) ||
      __builtin_mul_overflow(layer_bytes, static_cast<size_t>(layout.num_layers), &bytes) ||
      bytes > std::numeric_limits<size_t>::max() / 4) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a KV cache of ", num_pages, " pages of ", layout.page_bytes(), " bytes has no address"));
  }
  KvCache cache;
  cache.layout_ = layout;
  cache.num_pages_ = num_pages;
  cache.stream_ = stream;
  absl::StatusOr<DeviceMemory> pool =
      AllocateDevice(bytes, absl::StrCat("a KV cache of ", num_pages, " pages of ", layout.page_bytes(), " bytes"));
  if (!pool.ok()) return pool.status();
  cache.pool_ = *std::move(pool);
  if (layout.sketch != Sketch::kNone) {
    absl::StatusOr<DeviceMemory> sketch =
        AllocateDevice(layout.sketch_page_bytes() * num_pages,
                       absl::StrCat("sketches of ", num_pages, " pages of ", layout.sketch_page_bytes(), " bytes"));
    if (!sketch.ok()) return sketch.status();
    cache.sketch_ = *std::move(sketch);
  }
  if (!scales.empty()) {
    absl::StatusOr<DeviceMemory> device_scales = UploadScales(layout, scales);
    if (!device_scales.ok()) return device_scales.status();
    cache.scales_ = *std::move(device_scales);
  }
  // Two tokens at least, with their places and flags.
  absl::StatusOr<Staging> staging =
      Staging::Make(std::max(kStagingBytes, 4 * cache.token_bytes(DType::kFloat32) + 4096));
  if (!staging.ok()) return staging.status();
  cache.staging_ = *std::move(staging);
  return cache;
}

// Fills pieces_ with the next tokens of one source type that a slot has room for; false when there are none left.
bool KvCache::TakePieces(std::span<const KvAppend> appends, Cursor& cursor) {
  pieces_.clear();
  int64_t room = 0;
  for (; cursor.append < appends.size(); cursor = {cursor.append + 1, 0}) {
    const KvAppend& append = appends[cursor.append];
    if (append.num_tokens == cursor.first) continue;
    if (pieces_.empty()) {
      // Regions begin on multiples of 256 bytes: four of them.
      const size_t each = sizeof(TokenPlace) + sizeof(unsigned) + 2 * token_bytes(append.dtype);
      room = static_cast<int64_t>((staging_.slot_bytes() - 1024) / each);
    } else if (room == 0 || append.dtype != appends[pieces_[0].append].dtype) {
      break;
    }
    const int64_t count = std::min(append.num_tokens - cursor.first, room);
    pieces_.push_back({cursor.append, cursor.first, count});
    room -= count;
    if (cursor.first + count < append.num_tokens) {
      cursor.first += count;
      break;
    }
  }
  return !pieces_.empty();
}

absl::StatusOr<KvCache::Wave> KvCache::FillWave(std::span<const KvAppend> appends) {
  absl::StatusOr<Staging::Slot*> slot = staging_.Next();
  if (!slot.ok()) return slot.status();
  int64_t tokens = 0, copied = 0;
  for (const Piece& piece : pieces_) {
    tokens += piece.count;
    if (!appends[piece.append].mapped) copied += piece.count;
  }
  const DType source = appends[pieces_[0].append].dtype;
  const size_t each = token_bytes(source);
  Regions regions;
  const size_t flags = regions.Add(pieces_.size() * sizeof(unsigned));
  const size_t places = regions.Add(tokens * sizeof(TokenPlace));
  uint8_t* k_room = (*slot)->at(regions.Add(copied * each));
  uint8_t* v_room = (*slot)->at(regions.Add(copied * each));

  std::memset((*slot)->at(flags), 0, pieces_.size() * sizeof(unsigned));
  auto* place = reinterpret_cast<TokenPlace*>((*slot)->at(places));
  const auto copy = [](const uint8_t* from, size_t bytes, uint8_t*& room) -> const uint8_t* {
    std::memcpy(room, from, bytes);
    return std::exchange(room, room + bytes);
  };
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    const KvAppend& append = appends[piece.append];
    const uint8_t* k = static_cast<const uint8_t*>(append.k) + piece.first * each;
    const uint8_t* v = static_cast<const uint8_t*>(append.v) + piece.first * each;
    if (!append.mapped) {
      k = copy(k, piece.count * each, k_room);
      v = copy(v, piece.count * each, v_room);
    }
    for (int64_t t = append.position + piece.first; t < append.position + piece.first + piece.count; ++t) {
      const int64_t page = static_cast<int64_t>(append.layer) * num_pages_ + append.page_table[t / layout_.page_size];
      const size_t of_token = (t - append.position - piece.first) * each;
      *place++ = {.row = page * 2 * layout_.num_kv_heads * layout_.page_size + t % layout_.page_size,
                  .k = k + of_token,
                  .v = v + of_token,
                  .layer = append.layer,
                  .append = static_cast<int32_t>(i)};
    }
  }
  Wave wave = {.slot = *slot,
               .launch = {.pool = pool_.get(),
                          .places = reinterpret_cast<const TokenPlace*>((*slot)->at(places)),
                          .scales = static_cast<const float*>(scales_.get()),
                          .differs = reinterpret_cast<unsigned*>((*slot)->at(flags)),
                          .num_tokens = tokens,
                          .num_kv_heads = layout_.num_kv_heads,
                          .head_dim = layout_.head_dim,
                          .page_size = layout_.page_size,
                          .source = source,
                          .stored = layout_.dtype,
                          .feature_major_keys = layout_.key_order == KeyOrder::kFeatureMajor}};
  std::copy_n(wave.launch.places, std::min<int64_t>(tokens, kPlacesInLaunch), wave.launch.first);
  return wave;
}

absl::Status KvCache::Append(std::span<const KvAppend> appends) {
  for (Cursor cursor; TakePieces(appends, cursor);) {
    if (absl::Status status = QueueKept(); !status.ok()) return status;
    absl::StatusOr<Wave> wave = FillWave(appends);
    if (!wave.ok()) return wave.status();
    kept_ = *wave;
  }
  if (kept_.launch.num_tokens > kMostKept) {
    if (absl::Status status = QueueKept(); !status.ok()) return status;
  }
  return sketch_ == nullptr ? absl::OkStatus() : SketchFullPages(appends);
}

absl::Status KvCache::QueueKept() {
  if (kept_.launch.num_tokens == 0) return absl::OkStatus();
  queued_alone_ = true;
  if (absl::Status status = ToStatus(LaunchKvAppend(kept_.launch, stream_), "LaunchKvAppend"); !status.ok()) {
    return status;
  }
  kept_.launch.num_tokens = 0;
  return Staging::Release(*kept_.slot, stream_);
}

absl::Status KvCache::KeptIsQueued(cudaStream_t stream) {
  queued_alone_ = false;
  if (kept_.launch.num_tokens == 0) return absl::OkStatus();
  kept_.launch.num_tokens = 0;
  return Staging::Release(*kept_.slot, stream);
}

// A page is sketched anew whenever its last token is stored.
absl::Status KvCache::SketchFullPages(std::span<const KvAppend> appends) {
  const size_t most = std::min(kMaxSketches, staging_.slot_bytes() / sizeof(int64_t));
  full_pages_.clear();
  for (const KvAppend& append : appends) {
    const int64_t end = (append.position + append.num_tokens) / layout_.page_size;
    for (int64_t page = append.position / layout_.page_size; page < end; ++page) {
      if (full_pages_.size() == most) {
        if (absl::Status status = QueueSketches(); !status.ok()) return status;
      }
      full_pages_.push_back(int64_t{append.layer} * num_pages_ + append.page_table[page]);
    }
  }
  return QueueSketches();
}

absl::Status KvCache::QueueSketches() {
  if (full_pages_.empty()) return absl::OkStatus();
  if (absl::Status status = QueueKept(); !status.ok()) return status;
  absl::StatusOr<Staging::Slot*> slot = staging_.Next();
  if (!slot.ok()) return slot.status();
  const size_t bytes = full_pages_.size() * sizeof(int64_t);
  std::memcpy((*slot)->at(0), full_pages_.data(), bytes);
  const SketchBuildLaunch launch = {.pool = pool_.get(),
                                    .sketch = sketch_.get(),
                                    .pages = reinterpret_cast<const int64_t*>((*slot)->at(0)),
                                    .num_pages = static_cast<int32_t>(full_pages_.size()),
                                    .num_kv_heads = layout_.num_kv_heads,
                                    .head_dim = layout_.head_dim,
                                    .page_size = layout_.page_size,
                                    .key_bits = KeyBits(layout_.sketch),
                                    .value_bits = ValueBits(layout_.sketch),
                                    .stored = layout_.dtype};
  full_pages_.clear();
  queued_alone_ = true;
  if (absl::Status status = ToStatus(LaunchSketchBuild(launch, stream_), "LaunchSketchBuild"); !status.ok()) {
    return status;
  }
  return Staging::Release(**slot, stream_);
}

absl::Status KvCache::Compare(std::span<const KvAppend> appends, std::span<bool> matches) {
  std::fill(matches.begin(), matches.end(), true);
  if (absl::Status status = QueueKept(); !status.ok()) return status;
  for (Cursor cursor; TakePieces(appends, cursor);) {
    absl::StatusOr<Wave> wave = FillWave(appends);
    if (!wave.ok()) return wave.status();
    if (absl::Status status = ToStatus(LaunchKvCompare(wave->launch, stream_), "LaunchKvCompare"); !status.ok()) {
      return status;
    }
    if (absl::Status status = Staging::Release(*wave->slot, stream_); !status.ok()) return status;
    if (absl::Status status = ToStatus(cudaEventSynchronize(wave->slot->released.get()), "cudaEventSynchronize");
        !status.ok()) {
      return status;
    }
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (wave->launch.differs[i] != 0) matches[pieces_[i].append] = false;
    }
  }
  return absl::OkStatus();
}

absl::Status KvCache::CopyPages(std::span<const PageCopy> copies) {
  if (absl::Status status = QueueKept(); !status.ok()) return status;
  // One launch copies in any order: a copy that depends on one before it starts the next.
  size_t begin = 0;
  read_.clear();
  written_.clear();
  const size_t most = std::min(kMaxCopies, staging_.slot_bytes() / sizeof(PageCopy));
  for (size_t i = 0; i < copies.size(); ++i) {
    const PageCopy& copy = copies[i];
    if (i - begin == most || written_.contains(copy.from) || written_.contains(copy.to) || read_.contains(copy.to)) {
      if (absl::Status status = QueueCopies(copies.subspan(begin, i - begin)); !status.ok()) return status;
      begin = i;
      read_.clear();
      written_.clear();
    }
    read_.insert(copy.from);
    written_.insert(copy.to);
  }
  return QueueCopies(copies.subspan(begin));
}

absl::Status KvCache::QueueCopies(std::span<const PageCopy> copies) {
  if (copies.empty()) return absl::OkStatus();
  absl::StatusOr<Staging::Slot*> slot = staging_.Next();
  if (!slot.ok()) return slot.status();
  std::memcpy((*slot)->at(0), copies.data(), copies.size_bytes());
  PageCopyLaunch launch = {.pool = pool_.get(),
                           .copies = reinterpret_cast<const PageCopy*>((*slot)->at(0)),
                           .num_copies = static_cast<int32_t>(copies.size()),
                           .num_layers = layout_.num_layers,
                           .num_pages = num_pages_,
                           .layer_page_bytes = layout_.layer_page_bytes()};
  queued_alone_ = true;
  if (absl::Status status = ToStatus(LaunchPageCopy(launch, stream_), "LaunchPageCopy"); !status.ok()) return status;
  if (sketch_ != nullptr) {
    launch.pool = sketch_.get();
    launch.layer_page_bytes = sketch_layer_page_bytes();
    if (absl::Status status = ToStatus(LaunchPageCopy(launch, stream_), "LaunchPageCopy"); !status.ok()) return status;
  }
  return Staging::Release(**slot, stream_);
}

}  // namespace santa::cuda
